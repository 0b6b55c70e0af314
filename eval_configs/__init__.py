"""OpenCompass configs of the project, and the two small classes that they name. Run by `launch.score`."""
