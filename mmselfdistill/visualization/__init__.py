"""Two predictions of one image in one picture: what differs, and how it is drawn."""
