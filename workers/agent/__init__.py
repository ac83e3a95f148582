"""The worker's face to the cluster: channel, leases and objects on one side, an engine child on
the other. Nothing else among the workers knows SQL; nothing here knows tensors.
"""
