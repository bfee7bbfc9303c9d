"""OmniFarm: teach a frozen unified multimodal model your own things."""
