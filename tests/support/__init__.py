"""What tests share: models, structures, queues, transcripts, and programs that are killed."""
