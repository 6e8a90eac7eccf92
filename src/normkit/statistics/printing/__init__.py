"""Text for users: values in messages, tables of results, the progress bar."""
