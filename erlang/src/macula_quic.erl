%%% @doc QUIC connections and streams.
%%%
%%% The stream of {@link macula_gateway_mesh:get_or_create_connection/3} carries whole messages:
%%% each {@link send/2} is one. What such a pool of another node sends comes here as one stream for
%%% each connection, a message at a time. Every other stream carries plain bytes, of which the
%%% receiving side delivers one protocol frame at a time (see {@link setopt/3}).
%%%
%%% This module has no process of its own. Connections, streams and listeners belong to the process
%%% that made or accepted them, until {@link controlling_process/2}, and close when it dies. A
%%% listener, and a stream that is passive, also close when nobody holds them any more; a
%%% connection, and an active stream, do not. The messages to owners are listed in
%%% `docs/messages.md'. Handles are references that only this module and {@link
%%% macula_gateway_mesh} can use; anything else in their place raises `badarg'.
-module(macula_quic).

-export([
    listen/2,
    accept/2,
    async_accept/2,
    close_listener/1,
    reload_certificates/1,
    listener_stats/1
]).
-export([
    connect/4,
    handshake/1,
    accept_stream/2,
    async_accept_stream/2,
    open_stream/1,
    async_shutdown_connection/3,
    close_connection/1,
    getstat/2
]).
-export([
    send/2,
    async_send/2,
    recv/2,
    setopt/3,
    async_shutdown_stream/3,
    close_stream/1
]).
-export([close/1, peername/1, sockname/1, controlling_process/2]).

-export_type([
    listener/0, connection/0, stream/0, options/0, place/0, verify/0, send_error/0, recv_error/0,
    connect_error/0, listen_error/0, reload_error/0, accept_error/0, active/0
]).

%% What `receive' takes, checked before anything is asked for.
-define(IS_TIMEOUT(Timeout),
    (Timeout =:= infinity orelse
        (is_integer(Timeout) andalso Timeout >= 0 andalso Timeout =< 16#ffffffff))
).

-type listener() :: macula_gateway_mesh_nif:listener().
-type connection() :: macula_gateway_mesh_nif:connection().
-type stream() :: macula_gateway_mesh_nif:stream().

-type options() :: [
    {cert, Der :: binary() | [Der :: binary()] | file:name_all()}
    | {key, Der :: binary() | {atom(), Der :: binary()} | file:name_all()}
    | {certfile | keyfile | cacertfile, file:name_all()}
    | {alpn, [string() | binary()]}
    | {verify, verify()}
    | {server_name_indication, string() | binary() | disable}
    | {depth, non_neg_integer()}
    | {idle_timeout_ms | keep_alive_interval_ms | handshake_idle_timeout_ms, non_neg_integer()}
    | {peer_bidi_stream_count | peer_unidi_stream_count, non_neg_integer()}
    | {max_frame_bytes | max_unfinished_bytes | receive_window_bytes, pos_integer()}
    | {udp_buffer_bytes | backlog, pos_integer()}
    | {max_connections | max_connections_per_address, pos_integer()}
    | {max_handshakes | max_handshakes_per_address, pos_integer()}
    | {retry_above_handshakes, non_neg_integer()}
].
%% Defaults and bounds: README.md. Other options are refused by name.

-type verify() ::
    none
    | verify_none
    | peer
    | verify_peer
    | {spki_sha256, <<_:256>>}
    | {node_id, spki_sha256 | ed25519}.

-type place() ::
    inet:port_number()
    | {inet:ip_address(), inet:port_number()}
    | [{inet:ip_address(), inet:port_number()}].

-type active() :: boolean() | once | 1..16#ffff.

-type send_error() ::
    closed
    | removed
    | evicted
    | pool_closed
    | idle_timeout
    | reset
    | {dead, ack_timeout}
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

-type connect_error() ::
    timeout
    | idle_timeout
    | nxdomain
    | invalid_server_name
    | refused
    | version_mismatch
    | reset
    | cancelled
    | {bad_address, term()}
    | {unverified, atom()}
    | {tls_alert, Alert :: byte()}
    | {transport_error, Code :: non_neg_integer()}
    | {closed_by_peer, Code :: non_neg_integer()}
    | {socket_error, Posix :: atom()}
    | runtime_failed
    | option_error().

-type listen_error() ::
    {bad_address, Place :: term()}
    | no_certificate
    | {unverified, atom()}
    | {socket_error, Posix :: atom()}
    | runtime_failed
    | option_error().

-type reload_error() ::
    closed
    | no_certificate
    | {bad_certificate, Path :: binary(), Reason :: atom()}.
%% The listener was closed, or was given no files; or what is wrong with one of them, the name of a
%% POSIX error (such as `enoent' or `emfile') when it could not be read.

-type option_error() ::
    {bad_option, Key :: atom(), Value :: term()}
    | {unknown_option, term()}
    | {bad_options, term()}
    | {bad_certificate, Path :: binary(), Reason :: atom()}.

-type accept_error() :: closed | too_many_waiters.
%% Nothing will arrive any more, or 65,536 requests wait already.

-type recv_error() ::
    timeout
    | {peer_send_aborted, Code :: non_neg_integer()}
    | {frame_too_large, Bytes :: non_neg_integer()}
    | too_many_waiters
    | send_error().
%% `too_many_waiters': 1,024 processes wait for data of this stream already.

%%% Listeners

%% @doc Listens on a port of all addresses, IPv6 and IPv4, or on the addresses given; port 0 picks
%% one, which {@link sockname/1} tells. A listener needs a certificate and its key.
-spec listen(place(), options()) -> {ok, listener()} | {error, listen_error()}.
listen(Place, Options) ->
    macula_gateway_mesh_nif:quic_listen(places(Place), Options).

%% @doc The next connection, its handshake complete. A connection that comes too late for one
%% caller is there for the next.
-spec accept(listener(), timeout()) ->
    {ok, connection()} | {error, timeout | cancelled | accept_error()}.
accept(Listener, Timeout) when ?IS_TIMEOUT(Timeout) ->
    {Id, Token} = {request_id(), make_ref()},
    ok = macula_gateway_mesh_nif:listener_accept(Listener, Id, Token),
    Cancel = fun() -> macula_gateway_mesh_nif:listener_cancel_accept(Listener, Id) end,
    await(mesh_accepted, Token, Timeout, Cancel).

%% @doc Asks for one connection by message: `{quic, new_conn, Connection, Facts}', then `{quic,
%% connected, Connection, Facts}'.
-spec async_accept(listener(), term()) -> {ok, listener()} | {error, accept_error()}.
async_accept(Listener, _Options) ->
    case macula_gateway_mesh_nif:listener_async_accept(Listener) of
        ok -> {ok, Listener};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Takes in no more connections. Those that were accepted go on, and keep the port.
-spec close_listener(listener()) -> ok.
close_listener(Listener) ->
    close_handle(Listener).

%% @doc Reads the certificate and key files again; who connects from now on sees them.
-spec reload_certificates(listener()) -> ok | {error, reload_error()}.
reload_certificates(Listener) ->
    macula_gateway_mesh_nif:listener_reload(Listener).

%% @doc Connections open, handshakes under way, connections that wait to be accepted, and clients
%% refused by cause; also of a closed listener, whose connections go on.
-spec listener_stats(listener()) ->
    #{
        connections := non_neg_integer(),
        handshakes := non_neg_integer(),
        waiting := non_neg_integer(),
        refused := #{Cause :: atom() => pos_integer()}
    }.
listener_stats(Listener) ->
    macula_gateway_mesh_nif:listener_stats(Listener).

%%% Connections

%% @doc Connects to a host given by name or number. Unless `verify' is given, the server has to
%% prove who it is only where `MACULA_TLS_MODE' is `production'.
-spec connect(string() | binary() | inet:ip_address(), inet:port_number(), options(), Ms) ->
    {ok, connection()} | {error, connect_error()}
when
    Ms :: non_neg_integer().
connect(Host, Port, Options, TimeoutMs) ->
    Token = make_ref(),
    Dialling = macula_gateway_mesh_tls:dialling(Options),
    case macula_gateway_mesh_nif:quic_connect({Host, Port}, Dialling, TimeoutMs, Token) of
        ok -> await(mesh_opened, Token);
        {error, Reason} -> {error, Reason}
    end.

%% @doc Connections are handed out when their handshake is complete: nothing is left to be done.
-spec handshake(connection()) -> {ok, connection()}.
handshake(Connection) ->
    %% Raises an error for what is no handle.
    _ = macula_gateway_mesh_nif:handle_peername(Connection),
    {ok, Connection}.

%% @doc The next stream that the peer has opened. One that comes too late for one caller is there
%% for the next.
-spec accept_stream(connection(), timeout()) ->
    {ok, stream()} | {error, timeout | cancelled | not_accepting | accept_error()}.
accept_stream(Connection, Timeout) when ?IS_TIMEOUT(Timeout) ->
    {Id, Token} = {request_id(), make_ref()},
    case macula_gateway_mesh_nif:connection_accept_stream(Connection, Id, Token) of
        ok ->
            Cancel = fun() -> macula_gateway_mesh_nif:connection_cancel_accept(Connection, Id) end,
            await(mesh_accepted, Token, Timeout, Cancel);
        {error, Reason} ->
            {error, Reason}
    end.

%% @doc Asks for one stream by message: `{quic, new_stream, Stream, #{conn, flags}}'.
-spec async_accept_stream(connection(), term()) ->
    {ok, connection()} | {error, not_accepting | accept_error()}.
async_accept_stream(Connection, _Options) ->
    case macula_gateway_mesh_nif:connection_async_accept_stream(Connection) of
        ok -> {ok, Connection};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Opens a bidirectional stream of plain bytes; waits while the peer grants no more streams.
-spec open_stream(connection()) -> {ok, stream()} | {error, send_error()}.
open_stream(Connection) ->
    Token = make_ref(),
    ok = macula_gateway_mesh_nif:connection_open_stream(Connection, Token),
    await(mesh_opened, Token).

%% @doc Closes a connection with an application error code; the owner gets `{quic, closed, _, _}'.
-spec async_shutdown_connection(connection(), non_neg_integer(), non_neg_integer()) -> ok.
async_shutdown_connection(Connection, _Flags, Code) ->
    macula_gateway_mesh_nif:connection_shutdown(Connection, Code).

%% @doc As {@link close/1}.
-spec close_connection(connection()) -> ok.
close_connection(Connection) ->
    close_handle(Connection).

%% @doc Counters of a connection: UDP datagrams (`send_cnt', `recv_cnt'), their payload bytes
%% (`send_oct', `recv_oct'), and bytes queued for its streams (`send_pend').
-spec getstat(connection(), [atom()]) ->
    {ok, [{atom(), non_neg_integer()}]} | {error, closed | {unknown_key, term()}}.
getstat(Connection, Keys) when length(Keys) >= 0 ->
    case macula_gateway_mesh_nif:connection_traffic(Connection) of
        {ok, Traffic} -> select(Keys, Traffic);
        {error, Reason} -> {error, Reason}
    end.

%%% Streams

%% @doc Sends `Data': on a pooled stream as one message, on any other as the next bytes. `ok' once
%% it is queued; above the watermark it waits until the peer has taken enough.
-spec send(stream(), iodata()) -> ok | {error, send_error()}.
send(Stream, Data) when is_binary(Data) ->
    case macula_gateway_mesh_nif:stream_send(Stream, Data) of
        wait -> send_wait(Stream, Data);
        Result -> Result
    end;
send(Stream, Data) ->
    send(Stream, iolist_to_binary(Data)).

-spec send_wait(stream(), binary()) -> ok | {error, send_error()}.
send_wait(Stream, Data) ->
    Token = make_ref(),
    case macula_gateway_mesh_nif:stream_send_wait(Stream, Data, Token) of
        wait -> await(mesh_sent, Token);
        Result -> Result
    end.

%% @doc As {@link send/2}, but never waits: `{error, send_queue_full}' when there is no room.
-spec async_send(stream(), iodata()) -> ok | {error, send_error()}.
async_send(Stream, Data) when is_binary(Data) ->
    macula_gateway_mesh_nif:stream_async_send(Stream, Data);
async_send(Stream, Data) ->
    async_send(Stream, iolist_to_binary(Data)).

%% @doc The next data: of an active stream from its next message, of a passive one by reading, once
%% the owner has taken what came as messages before. With the timeout 0, what has come already. What
%% comes too late for one call is there for the next. Several processes may read one passive stream:
%% each delivery goes to who has waited longest. While it is active, only its owner gets data, and
%% others wait until that is over.
-spec recv(stream(), timeout()) -> {ok, binary()} | {error, recv_error()}.
recv(Stream, Timeout) when ?IS_TIMEOUT(Timeout) ->
    {Id, Token} = {request_id(), make_ref()},
    Since = erlang:monotonic_time(millisecond),
    Cancel = fun() -> macula_gateway_mesh_nif:stream_cancel_receive(Stream, Id) end,
    case macula_gateway_mesh_nif:stream_receive(Stream, Id, Token, Timeout > 0) of
        wait when Timeout =:= 0 ->
            look_after(await(mesh_received, Token), Stream, 0);
        wait ->
            Result = await(mesh_received, Token, Timeout, Cancel),
            look_after(Result, Stream, remaining(Timeout, Since));
        active ->
            Result = recv_message(Stream, Token, Timeout, Cancel),
            look_after(Result, Stream, remaining(Timeout, Since));
        look ->
            recv_left(Stream, Timeout);
        {error, Reason} ->
            {error, Reason}
    end.

-spec look_after(look | Result, stream(), timeout()) -> Result when
    Result :: {ok, binary()} | {error, recv_error()}.
look_after(look, Stream, Timeout) -> recv_left(Stream, Timeout);
look_after(Result, _Stream, _Timeout) -> Result.

-spec recv_message(stream(), reference(), timeout(), fun(() -> boolean())) ->
    look | {ok, binary()} | {error, recv_error()}.
recv_message(Stream, Token, Timeout, Cancel) ->
    receive
        {mesh_received, Token, look} -> look;
        {quic, Data, Stream, _} when is_binary(Data) -> told(Cancel, Token, {ok, Data});
        {quic, peer_send_shutdown, Stream, _} -> told(Cancel, Token, {error, closed});
        {quic, peer_send_aborted = End, Stream, Code} -> told(Cancel, Token, {error, {End, Code}});
        {quic, frame_too_large = End, Stream, Bytes} -> told(Cancel, Token, {error, {End, Bytes}});
        {quic, stream_closed, Stream, End} -> told(Cancel, Token, {error, lost_or_closed(End)})
    after Timeout ->
        told(Cancel, Token, {error, timeout})
    end.

%% By a message, or not at all: the answer is not waited for any more.
-spec told(fun(() -> boolean()), reference(), Result) -> Result.
told(Cancel, Token, Result) ->
    _ = Cancel() orelse await(mesh_received, Token),
    Result.

-spec lost_or_closed(map()) -> term().
lost_or_closed(#{is_conn_shutdown := true, status := Reason}) -> Reason;
lost_or_closed(_Closed) -> closed.

%% What came as messages comes before what is still to be read.
-spec recv_left(stream(), timeout()) -> {ok, binary()} | {error, recv_error()}.
recv_left(Stream, Timeout) ->
    receive
        {quic, Data, Stream, _} when is_binary(Data) ->
            ok = macula_gateway_mesh_nif:stream_look_again(Stream),
            {ok, Data}
    after 0 ->
        recv(Stream, Timeout)
    end.

-spec remaining(timeout(), integer()) -> timeout().
remaining(infinity, _Since) ->
    infinity;
remaining(Timeout, Since) ->
    max(0, Timeout - (erlang:monotonic_time(millisecond) - Since)).

%% @doc Options of a stream. `active': data as messages `{quic, Data, Stream, _}' (`true'), one
%% of them (`once'), so many of them and then `{quic, passive, Stream, _}' (a number), or only by
%% {@link recv/2} (`false', where every stream begins). `packet': each delivery is one protocol
%% frame (`macula', where every stream begins; bytes that are no frames pass as they come), or as
%% many bytes as there are (`raw'). It changes nothing where messages of another node's pool come,
%% which are whole.
-spec setopt(stream(), active, active()) -> ok | {error, closed};
    (stream(), packet, macula | raw) -> ok | {error, closed}.
setopt(Stream, active, Mode) ->
    macula_gateway_mesh_nif:stream_set_active(Stream, Mode);
setopt(Stream, packet, Packet) ->
    macula_gateway_mesh_nif:stream_set_packet(Stream, Packet).

%% @doc Ends halves of a stream. `Flags' is a sum of 1 (send what is queued, then FIN), 2 (give the
%% sending half up: RESET_STREAM with `Code'), 4 (read no more: STOP_SENDING) and 8 (2 and 4
%% together). Without 2, 4 and 8 it is as 1, whatever else is in it. A pooled stream is closed by
%% any flags, as by {@link close/1}.
-spec async_shutdown_stream(stream(), non_neg_integer(), non_neg_integer()) -> ok.
async_shutdown_stream(Stream, Flags, Code) ->
    macula_gateway_mesh_nif:stream_shutdown(Stream, Flags, Code).

%% @doc As {@link close/1}.
-spec close_stream(stream()) -> ok.
close_stream(Stream) ->
    close_handle(Stream).

%%% All handles

%% @doc Closes a stream (what is queued still goes out, then FIN; nothing more is read), a
%% connection (at once: what its peer has not acknowledged may be lost), or a listener. Closing a
%% pooled stream leaves its connection alone: the next request for that node gets a fresh stream on
%% it. Always `ok', also of what is no handle, or none any more: there is nothing to be closed.
-spec close(stream() | connection() | listener() | term()) -> ok.
close(Handle) ->
    try
        close_handle(Handle)
    catch
        error:badarg -> ok
    end.

%% @doc The peer's address, also after the connection has ended.
-spec peername(stream() | connection()) -> {ok, {inet:ip_address(), inet:port_number()}}.
peername(Handle) ->
    case macula_gateway_mesh_nif:handle_peername(Handle) of
        dirty -> macula_gateway_mesh_nif:handle_peername_dirty(Handle);
        Address -> Address
    end.

%% @doc Our own address; of a listener, the first.
-spec sockname(stream() | connection() | listener()) ->
    {ok, {inet:ip_address(), inet:port_number()}} | {error, closed}.
sockname(Handle) ->
    case macula_gateway_mesh_nif:handle_sockname(Handle) of
        dirty -> macula_gateway_mesh_nif:handle_sockname_dirty(Handle);
        Address -> Address
    end.

%% @doc Hands over what the caller owns. Messages that it has got and not taken yet go along, in
%% their order; of a stream, nothing is lost, repeated or reordered.
-spec controlling_process(stream() | connection() | listener(), pid()) ->
    ok | {error, not_owner | noproc | closed}.
controlling_process(Handle, Pid) when is_pid(Pid), node(Pid) =:= node() ->
    try macula_gateway_mesh_nif:stream_pause(Handle, Pid) of
        ok -> give_stream(Handle, Pid);
        {error, Reason} -> {error, Reason}
    catch
        error:badarg -> give(Handle, Pid)
    end.

%%% Internal

%% While the stream is paused nothing more is posted; so what has come before is with the new
%% owner before what comes after.
-spec give_stream(stream(), pid()) -> ok.
give_stream(Stream, Pid) ->
    ok = forward(Stream, Pid),
    ok = macula_gateway_mesh_nif:stream_give(Stream, Pid).

-spec give(connection() | listener(), pid()) -> ok | {error, not_owner | noproc}.
give(Handle, Pid) ->
    case macula_gateway_mesh_nif:handle_give(Handle, Pid) of
        ok -> forward(Handle, Pid);
        {error, Reason} -> {error, Reason}
    end.

-spec forward(stream() | connection() | listener(), pid()) -> ok.
forward(_Handle, Pid) when Pid =:= self() ->
    ok;
forward(Handle, Pid) ->
    receive
        {quic, _, Handle, _} = Message ->
            Pid ! Message,
            forward(Handle, Pid)
    after 0 ->
        ok
    end.

-spec close_handle(stream() | connection() | listener()) -> ok.
close_handle(Handle) ->
    case macula_gateway_mesh_nif:handle_close(Handle) of
        ok -> ok;
        dirty -> macula_gateway_mesh_nif:handle_close_dirty(Handle)
    end.

-spec places(place()) -> inet:port_number() | [{inet:ip_address(), inet:port_number()}].
places({_Address, _Port} = Place) -> [Place];
places(Places) -> Places.

-spec select([atom()], #{atom() => non_neg_integer()}) ->
    {ok, [{atom(), non_neg_integer()}]} | {error, {unknown_key, term()}}.
select(Keys, Traffic) ->
    case [Key || Key <- Keys, not is_map_key(Key, Traffic)] of
        [] -> {ok, [{Key, map_get(Key, Traffic)} || Key <- Keys]};
        [Unknown | _] -> {error, {unknown_key, Unknown}}
    end.

%% By which a request can be taken back. The token of its answer is made in the function that asks:
%% else the compiler would not see that what is in the mailbox by then need not be looked through.
-spec request_id() -> pos_integer().
request_id() ->
    erlang:unique_integer([positive]).

%% No timeout is needed: the native side answers each request once, also when what it was made to
%% has ended.
-spec await(atom(), reference()) -> term().
await(Tag, Token) ->
    receive
        {Tag, Token, Result} -> Result
    end.

%% A request that was not taken back in time has been answered already.
-spec await(atom(), reference(), timeout(), fun(() -> boolean())) -> term().
await(Tag, Token, Timeout, Cancel) ->
    receive
        {Tag, Token, Result} -> Result
    after Timeout ->
        case Cancel() of
            true -> {error, timeout};
            false -> await(Tag, Token)
        end
    end.
