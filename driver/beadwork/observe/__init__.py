"""What a person sees while it runs, and what a run writes down; reads what happened, changes nothing."""
