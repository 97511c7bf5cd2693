COVER: bytes
