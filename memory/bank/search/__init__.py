"""Search of a memory bank: keyword, dense and date matching."""
