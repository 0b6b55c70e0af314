"""Stand-in for torchaudio on machines that train on text only; it has nothing to call."""
