"""xLSTM: matrix memories with exponential gates (mLSTM), and LSTM cells with such gates (sLSTM)."""
