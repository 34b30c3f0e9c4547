"""Stand-ins for the libraries of CANN; see README.md."""
