"""Looking at what models do: figures."""
