"""What each virtualization platform needs: its files in place, and its events turned into hook calls."""
