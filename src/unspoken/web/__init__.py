"""The lab's server and page, and the OpenAI-compatible interface."""
