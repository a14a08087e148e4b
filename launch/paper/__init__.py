"""What launch/reproduce.py needs: rows, measurements, figures and the page."""
