%%% The flags that macula nodes name when they call `quicer'. The numbers are those of
%%% quicer; what they do here is written at the functions that take them.

-ifndef(QUICER_HRL).
-define(QUICER_HRL, true).

%% Of start_stream/2.
-define(QUIC_STREAM_OPEN_FLAG_NONE, 0).
-define(QUIC_STREAM_OPEN_FLAG_UNIDIRECTIONAL, 1).
-define(QUIC_STREAM_START_FLAG_NONE, 0).
-define(QUIC_STREAM_START_FLAG_SHUTDOWN_ON_FAIL, 4).

%% Of send/3 and async_send/3.
-define(QUIC_SEND_FLAG_NONE, 16#0).
-define(QUIC_SEND_FLAG_ALLOW_0_RTT, 16#1).
-define(QUIC_SEND_FLAG_START, 16#2).
-define(QUIC_SEND_FLAG_FIN, 16#4).
-define(QUIC_SEND_FLAG_DGRAM_PRIORITY, 16#8).
-define(QUIC_SEND_FLAG_DELAY_SEND, 16#10).
-define(QUICER_SEND_FLAG_SYNC, 16#1000).

%% Of the functions that shut a stream down.
-define(QUIC_STREAM_SHUTDOWN_FLAG_NONE, 0).
-define(QUIC_STREAM_SHUTDOWN_FLAG_GRACEFUL, 1).
-define(QUIC_STREAM_SHUTDOWN_FLAG_ABORT_SEND, 2).
-define(QUIC_STREAM_SHUTDOWN_FLAG_ABORT_RECEIVE, 4).
-define(QUIC_STREAM_SHUTDOWN_FLAG_ABORT, 6).
-define(QUIC_STREAM_SHUTDOWN_FLAG_IMMEDIATE, 8).

%% Of the functions that shut a connection down.
-define(QUIC_CONNECTION_SHUTDOWN_FLAG_NONE, 0).
-define(QUIC_CONNECTION_SHUTDOWN_FLAG_SILENT, 1).

-endif.
