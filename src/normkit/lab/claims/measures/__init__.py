"""What the odd claims read off their runs."""
