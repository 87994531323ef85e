"""What a user can do wrong with towers and tokenizers."""


class EncoderError(Exception):
    """A tower or tokenizer cannot be loaded or does not fit; the message says what was found and what to do."""
