"""What GradScope costs, measured; see README.md here."""
