"""Results that the functions return, and how they print."""
