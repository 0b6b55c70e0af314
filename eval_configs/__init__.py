"""OpenCompass configs of the project, and the classes that they name. Run by `launch.scoring.evaluate`."""
