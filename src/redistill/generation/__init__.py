"""Text generation by models of this process, and checks of external engines."""
