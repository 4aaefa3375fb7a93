"""Networks: what is built, what is imported, and what is only ever asked."""
