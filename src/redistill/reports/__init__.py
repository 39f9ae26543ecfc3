"""What runs are compared by and shown with; it reads the files of run folders and never a model."""
