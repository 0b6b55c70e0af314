"""The project's OpenCompass configs, and the classes that they use. `launch.scoring.evaluate` runs them."""
