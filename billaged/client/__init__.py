"""The sending side: what meters a machine and pushes usage to a billaged.

Law of this room: never imports the daemon's stages. It knows the model and the
wire, as any client in any language would, and nothing of what is behind the door.
"""
