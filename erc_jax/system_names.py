"""Names of systems that others have to tell apart; without JAX, for reports start at once."""

FINE_TUNING = "fine_tuning"  # its runs leave an encoder
FMERL = "fmerl"  # it reads modalities, and descriptions of emotions
RESPONSE = "response"  # it replies
SENT_EMO_CONTEXT = "sent_emo_context"  # some of its networks read word vectors
