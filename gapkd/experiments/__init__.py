"""Arms x seeds, their records, and what is read off them."""
