"""What a person looks at; reads what happened, changes nothing."""
