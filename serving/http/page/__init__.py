"""The web page at `/`: a digit drawn there is classified by every model."""
