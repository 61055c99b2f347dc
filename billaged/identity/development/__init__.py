"""Certificates for development: a CA of its own in a folder, what it signs, and a policy that knows them.

    DIR/ca.pem, ca.key            signs the others; nothing here ever signs with a CA that it did not make
    DIR/server.pem, server.key    the daemon, spiffe://dev.billaged/billaged
    DIR/NAME.pem, NAME.key        a client, spiffe://dev.billaged/NAME
    DIR/policy.toml               what these may do; never written twice, for it is there to be edited

What is there and good is kept, what is there and wrong is refused unless it may be replaced.
"""
