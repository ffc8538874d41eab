"""The `unspoken` command. Nothing here imports torch until a command needs a model."""
