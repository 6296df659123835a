"""Images of one's own: read from folders, and learned by a network that others have trained."""
