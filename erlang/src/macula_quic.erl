%%% @doc Streams of mesh connections.
%%%
%%% The stream of {@link macula_gateway_mesh:get_or_create_connection/3} carries whole messages:
%%% each {@link send/2} is one. A stream of {@link open_stream/1} carries plain bytes.
%%%
%%% This module has no process of its own. Handles are references that only this module and
%%% {@link macula_gateway_mesh} can use; anything else in their place raises `badarg'.
-module(macula_quic).

-export([send/2, async_send/2, open_stream/1, close/1, peername/1]).

-export_type([stream/0, connection/0, send_error/0]).

-type stream() :: macula_gateway_mesh_nif:stream().
-type connection() :: macula_gateway_mesh_nif:connection().

-type send_error() ::
    closed
    | removed
    | evicted
    | pool_closed
    | idle_timeout
    | reset
    | no_stream_credit
    | message_too_large
    | send_queue_full
    | cancelled
    | {closed_by_peer, Code :: non_neg_integer()}
    | {transport_error, Code :: non_neg_integer()}
    | {tls_alert, Alert :: byte()}
    | {stopped, Code :: non_neg_integer()}
    | {socket_error, Posix :: atom()}.
%% Why a stream takes nothing more: it was closed, or its connection was removed, evicted or lost,
%% by whom and with which code (RFC 9000, section 20).

%% @doc Sends `Data': on a pooled stream as one message, on an opened stream as the next bytes.
%% `ok' once it is queued; above the watermark it waits until the peer has taken enough.
-spec send(stream(), iodata()) -> ok | {error, send_error()}.
send(Stream, Data) when is_binary(Data) ->
    case macula_gateway_mesh_nif:stream_send(Stream, Data) of
        wait -> send_wait(Stream, Data);
        Result -> Result
    end;
send(Stream, Data) ->
    send(Stream, iolist_to_binary(Data)).

%% No timeout is needed: the native side answers each waiter once, also when the connection or the
%% task behind it ends.
-spec send_wait(stream(), binary()) -> ok | {error, send_error()}.
send_wait(Stream, Data) ->
    Ref = make_ref(),
    case macula_gateway_mesh_nif:stream_send_wait(Stream, Data, Ref) of
        wait ->
            receive
                {mesh_sent, Ref, Result} -> Result
            end;
        Result ->
            Result
    end.

%% @doc As {@link send/2}, but never waits: `{error, send_queue_full}' when there is no room.
-spec async_send(stream(), iodata()) -> ok | {error, send_error()}.
async_send(Stream, Data) when is_binary(Data) ->
    macula_gateway_mesh_nif:stream_async_send(Stream, Data);
async_send(Stream, Data) ->
    async_send(Stream, iolist_to_binary(Data)).

%% @doc Opens a bidirectional stream of plain bytes on the connection of
%% {@link macula_gateway_mesh:get_connection_info/2}; waits while the peer grants no more streams.
%% The stream is closed when the calling process ends.
-spec open_stream(connection()) -> {ok, stream()} | {error, send_error()}.
open_stream(Connection) ->
    Ref = make_ref(),
    ok = macula_gateway_mesh_nif:connection_open_stream(Connection, Ref),
    receive
        {mesh_opened, Ref, Result} -> Result
    end.

%% @doc Closes a stream or a connection; what is queued still goes out. Closing the pooled stream
%% leaves its connection alone: the next request for that node gets a fresh stream on it.
-spec close(stream() | connection()) -> ok.
close(Handle) ->
    macula_gateway_mesh_nif:handle_close(Handle).

%% @doc The peer's address, also after the connection has ended.
-spec peername(stream() | connection()) -> {ok, {inet:ip_address(), inet:port_number()}}.
peername(Handle) ->
    macula_gateway_mesh_nif:handle_peername(Handle).
