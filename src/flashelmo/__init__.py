"""flashelmo."""
