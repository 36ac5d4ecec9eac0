"""What lies in run folders → tidy frames with intervals. No torch, no plotly."""
