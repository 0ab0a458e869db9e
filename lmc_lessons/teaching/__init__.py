"""What turns the package into a book: checks, figures, predictions, execution and editions."""
