"""Reading, understanding and encoding data, all on the host. Import the modules you need; nothing is loaded here."""
