"""Files for other systems: compose, Kubernetes, systemd, Proxmox, LiteLLM. Pure: specs in, text out."""
