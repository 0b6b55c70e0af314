"""Speed and memory against a peer in the same run; each program prints its table. Results lie beside as Markdown."""
