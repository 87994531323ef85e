"""What tests share: drawings, tiny towers, servers, processes, contracts."""
