%%% @doc The calls that macula v0.20.5 nodes make of quicer, the Erlang binding to MsQuic, under its
%%% names and with its shapes, carried out by {@link macula_quic}. So a node that calls quicer
%%% directly runs without it.
%%%
%%% Handles and messages to owners are those of `macula_quic' (`docs/messages.md' there). What is
%%% not as in quicer is said at each function, and in `docs/migration.md'. What cannot be
%%% done truthfully is refused with an error. A handle that is none, and any other argument of no
%%% use, gets `{error, badarg}'.
%%%
%%% Options are maps or property lists:
%%% <ul>
%%% <li>those that `macula_quic' has go to it; one that neither knows is refused by name,
%%% `{error, {unknown_option, Key}}';</li>
%%% <li>those by which MsQuic is tuned inside (see `tuning/0' in the source) are ignored:
%%% neither the caller nor the peer can tell;</li>
%%% <li>those that ask for what is not there (`allow_insecure', `custom_verify', `nst', `password',
%%% `sslkeylogfile', a client certificate that may be absent, ...) are refused, unless their value
%%% says that it is not wanted;</li>
%%% <li>defaults are those of `macula_quic', not of quicer.</li>
%%% </ul>
-module(quicer).

-export([listen/2, close_listener/1, close_listener/2, accept/2, accept/3, async_accept/2]).
-export([
    connect/4,
    handshake/1,
    handshake/2,
    close_connection/1,
    close_connection/2,
    close_connection/3,
    close_connection/4,
    shutdown_connection/1,
    shutdown_connection/2,
    shutdown_connection/3,
    shutdown_connection/4,
    async_shutdown_connection/3,
    getstat/2
]).
-export([
    start_stream/2,
    accept_stream/2,
    accept_stream/3,
    async_accept_stream/1,
    async_accept_stream/2,
    send/2,
    send/3,
    async_send/2,
    async_send/3,
    recv/2,
    handoff_stream/2,
    handoff_stream/3,
    close_stream/1,
    close_stream/2,
    close_stream/3,
    close_stream/4,
    shutdown_stream/1,
    shutdown_stream/2,
    shutdown_stream/3,
    shutdown_stream/4,
    async_shutdown_stream/1,
    async_shutdown_stream/3
]).
-export([controlling_process/2, setopt/3, getopt/2, getopt/3, peername/1, sockname/1]).

-export_type([listener_handle/0, connection_handle/0, stream_handle/0]).

-include("../include/quicer.hrl").

-define(SHUTDOWN_MS, 5_000).
%% What `infinity' is for a dial: longer is no wish but a mistake.
-define(LONGEST_DIAL_MS, 3_600_000).
%% What RFC 9001, section 4.8, adds to a TLS alert to make a QUIC error code of it.
-define(CRYPTO_ERROR, 16#100).
%% RFC 9000, section 20.1.
-define(CONNECTION_REFUSED, 16#2).
%% Flags that only say how to send, of which neither side can tell.
-define(SEND_HINTS,
    (?QUIC_SEND_FLAG_ALLOW_0_RTT bor ?QUIC_SEND_FLAG_START bor ?QUIC_SEND_FLAG_DGRAM_PRIORITY bor
        ?QUIC_SEND_FLAG_DELAY_SEND)
).

%% quicer answers a handle that is none, and any other argument of no use, with an error,
%% where ours raises one. No function: the types of what it returns would be those of all its uses.
-define(KNOWN(Call),
    try
        Call
    catch
        error:Unfit when Unfit =:= badarg; Unfit =:= function_clause -> {error, badarg}
    end
).

%% What a process can wait for (in milliseconds), checked before anything is done.
-define(IS_TIMEOUT(Ms),
    (Ms =:= infinity orelse (is_integer(Ms) andalso Ms >= 0 andalso Ms < 1 bsl 32))
).

%% What `active' may be, checked before a stream is taken for it.
-define(IS_MODE(Mode),
    (is_boolean(Mode) orelse Mode =:= once orelse
        (is_integer(Mode) andalso Mode > 0 andalso Mode =< 16#ffff))
).

-type listener_handle() :: macula_quic:listener().
-type connection_handle() :: macula_quic:connection().
-type stream_handle() :: macula_quic:stream().
-type handle() :: listener_handle() | connection_handle() | stream_handle().
-type options() :: #{atom() => term()} | [{atom(), term()} | atom()].
-type error() :: {error, term()}.
-type address() :: {inet:ip_address(), inet:port_number()}.
-type transport_down() :: #{
    status := atom(), error := non_neg_integer() | undefined, reason := term()
}.
%% `status' is quicer's word, `error' the QUIC error code (RFC 9000, section 20) if one was
%% sent, `reason' that of `macula_quic:connect/4'.

%%% Listeners

%% @doc Listens at a port of all addresses, or at the one of `"Address:Port"'. Needs a certificate.
-spec listen(inet:port_number() | string() | binary(), options()) ->
    {ok, listener_handle()} | error().
listen(On, Opts) ->
    case {place(On), options(Opts)} of
        {{ok, Place}, {ok, Options}} -> macula_quic:listen(Place, Options);
        {{error, Reason}, _} -> {error, Reason};
        {_, {error, Reason}} -> {error, Reason}
    end.

-spec close_listener(listener_handle()) -> ok | error().
close_listener(Listener) ->
    ?KNOWN(macula_quic:close_listener(Listener)).

%% @doc As {@link close_listener/1}, which does not wait; there is no message `listener_stopped'.
-spec close_listener(listener_handle(), timeout()) -> ok | error().
close_listener(Listener, _Timeout) ->
    close_listener(Listener).

-spec accept(listener_handle(), options()) -> {ok, connection_handle()} | error().
accept(Listener, Opts) ->
    accept(Listener, Opts, infinity).

%% @doc The next connection, its handshake complete. The options are the listener's business, and
%% are ignored here.
-spec accept(listener_handle(), options(), timeout()) -> {ok, connection_handle()} | error().
accept(Listener, _Opts, Timeout) ->
    ?KNOWN(macula_quic:accept(Listener, Timeout)).

%% @doc Asks for one `{quic, new_conn, Connection, Info}'. The options are ignored.
-spec async_accept(listener_handle(), options()) -> {ok, listener_handle()} | error().
async_accept(Listener, Opts) ->
    ?KNOWN(macula_quic:async_accept(Listener, Opts)).

%%% Connections

%% @doc Connects within `Timeout', name look-up included. Options that are of no use give
%% `{error, Reason}'; whatever else goes wrong, `{error, transport_down, Details}'.
-spec connect(string() | binary() | inet:ip_address(), inet:port_number(), options(), timeout()) ->
    {ok, connection_handle()} | error() | {error, transport_down, transport_down()}.
connect(Host, Port, Opts, Timeout) ->
    case options(Opts) of
        {ok, Options} ->
            connected(?KNOWN(macula_quic:connect(Host, Port, Options, dial_ms(Timeout))));
        {error, Reason} -> {error, Reason}
    end.

-spec handshake(connection_handle()) -> {ok, connection_handle()} | error().
handshake(Conn) ->
    handshake(Conn, ?SHUTDOWN_MS).

%% @doc Nothing is left to be done. Takes the message `connected' along, if it is there already.
-spec handshake(connection_handle(), timeout()) -> {ok, connection_handle()} | error().
handshake(Conn, _Timeout) ->
    case ?KNOWN(macula_quic:handshake(Conn)) of
        {ok, Conn} ->
            _ = take(connected, Conn, 0),
            {ok, Conn};
        {error, Reason} ->
            {error, Reason}
    end.

-spec close_connection(connection_handle()) -> ok | error().
close_connection(Conn) ->
    shutdown_connection(Conn).

-spec close_connection(connection_handle(), timeout()) -> ok | error().
close_connection(Conn, Timeout) ->
    shutdown_connection(Conn, Timeout).

-spec close_connection(connection_handle(), non_neg_integer(), non_neg_integer()) -> ok | error().
close_connection(Conn, Flags, Code) ->
    shutdown_connection(Conn, Flags, Code).

-spec close_connection(connection_handle(), non_neg_integer(), non_neg_integer(), timeout()) ->
    ok | error().
close_connection(Conn, Flags, Code, Timeout) ->
    shutdown_connection(Conn, Flags, Code, Timeout).

-spec shutdown_connection(connection_handle()) -> ok | error().
shutdown_connection(Conn) ->
    shutdown_connection(Conn, ?SHUTDOWN_MS).

-spec shutdown_connection(connection_handle(), timeout()) -> ok | error().
shutdown_connection(Conn, Timeout) ->
    shutdown_connection(Conn, ?QUIC_CONNECTION_SHUTDOWN_FLAG_NONE, 0, Timeout).

-spec shutdown_connection(connection_handle(), non_neg_integer(), non_neg_integer()) ->
    ok | error().
shutdown_connection(Conn, Flags, Code) ->
    shutdown_connection(Conn, Flags, Code, ?SHUTDOWN_MS).

%% @doc Closes the connection and waits for its end; only its owner is told of that, anybody else
%% gets `{error, timeout}'. The peer is told the code, also with the flag 1 (silent).
-spec shutdown_connection(connection_handle(), non_neg_integer(), non_neg_integer(), timeout()) ->
    ok | error().
shutdown_connection(Conn, Flags, Code, Timeout) when ?IS_TIMEOUT(Timeout) ->
    case async_shutdown_connection(Conn, Flags, Code) of
        ok -> take(closed, Conn, Timeout);
        {error, Reason} -> {error, Reason}
    end;
shutdown_connection(_Conn, _Flags, _Code, _Timeout) ->
    {error, badarg}.

%% @doc The owner gets `{quic, closed, Connection, _}'. `{error, closed}' when it is over already.
-spec async_shutdown_connection(connection_handle(), non_neg_integer(), non_neg_integer()) ->
    ok | error().
async_shutdown_connection(Conn, Flags, Code) ->
    case getstat(Conn, []) of
        {ok, []} -> ?KNOWN(macula_quic:async_shutdown_connection(Conn, Flags, Code));
        {error, Reason} -> {error, Reason}
    end.

%% @doc As {@link macula_quic:getstat/2}: a counter that is not there is an error.
-spec getstat(connection_handle(), [atom()]) -> {ok, [{atom(), non_neg_integer()}]} | error().
getstat(Conn, Keys) ->
    ?KNOWN(macula_quic:getstat(Conn, Keys)).

%%% Streams

%% @doc Opens a bidirectional stream, active unless the options say otherwise; waits while the
%% peer grants no more streams. Unidirectional ones cannot be opened.
-spec start_stream(connection_handle(), options()) ->
    {ok, stream_handle()} | error() | {error, stream_open_error | stream_start_error, atom()}.
start_stream(Conn, Opts) ->
    case stream_options(Opts) of
        {ok, Settings} -> begun(?KNOWN(macula_quic:open_stream(Conn)), Settings);
        Refused -> Refused
    end.

-spec accept_stream(connection_handle(), options()) ->
    {ok, stream_handle()} | error() | {error, stream_open_error | stream_start_error, atom()}.
accept_stream(Conn, Opts) ->
    accept_stream(Conn, Opts, infinity).

%% @doc The next stream that the peer has opened, active unless the options say otherwise.
-spec accept_stream(connection_handle(), options(), timeout()) ->
    {ok, stream_handle()} | error() | {error, stream_open_error | stream_start_error, atom()}.
accept_stream(Conn, Opts, Timeout) ->
    case stream_options(Opts) of
        {ok, Settings} ->
            begun(?KNOWN(macula_quic:accept_stream(Conn, Timeout)), Settings);
        Refused ->
            Refused
    end.

-spec async_accept_stream(connection_handle()) ->
    {ok, connection_handle()} | error() | {error, stream_open_error | stream_start_error, atom()}.
async_accept_stream(Conn) ->
    async_accept_stream(Conn, #{}).

%% @doc Asks for one `{quic, new_stream, Stream, #{conn, flags}}'. The stream begins passive:
%% whoever gets it calls {@link setopt/3}. So `active' may be given as `false' only.
-spec async_accept_stream(connection_handle(), options()) ->
    {ok, connection_handle()} | error() | {error, stream_open_error | stream_start_error, atom()}.
async_accept_stream(Conn, Opts) ->
    case stream_options(with_default({active, false}, Opts)) of
        {ok, #{active := false} = Settings} when not is_map_key(packet, Settings) ->
            ?KNOWN(macula_quic:async_accept_stream(Conn, Opts));
        {ok, #{active := false, packet := Packet}} ->
            {error, {bad_option, packet, Packet}};
        {ok, #{active := Mode}} ->
            {error, {bad_option, active, Mode}};
        Refused ->
            Refused
    end.

-spec send(stream_handle(), iodata()) -> {ok, non_neg_integer()} | error().
send(Stream, Data) ->
    send(Stream, Data, ?QUIC_SEND_FLAG_NONE).

%% @doc `{ok, Bytes}' when all of it is queued, for which it waits if it must; quicer waits
%% for the peer's acknowledgement. Of the flags, FIN is obeyed, and the hints how to send are
%% ignored.
-spec send(stream_handle(), iodata(), non_neg_integer()) -> {ok, non_neg_integer()} | error().
send(Stream, Data, Flags) when is_integer(Flags) ->
    sent(fun macula_quic:send/2, Stream, Data, Flags band bnot ?QUICER_SEND_FLAG_SYNC);
send(_Stream, _Data, _Flags) ->
    {error, not_supported}.

-spec async_send(stream_handle(), iodata()) -> {ok, non_neg_integer()} | error().
async_send(Stream, Data) ->
    async_send(Stream, Data, ?QUIC_SEND_FLAG_NONE).

%% @doc Never waits: `{error, send_queue_full}' when there is no room. The flag that asks for a
%% message `send_complete' is refused: there is none.
-spec async_send(stream_handle(), iodata(), non_neg_integer()) ->
    {ok, non_neg_integer()} | error().
async_send(Stream, Data, Flags) ->
    sent(fun macula_quic:async_send/2, Stream, Data, Flags).

%% @doc Waits for the next data of a passive stream. `Count' can only be 0, what there is: nothing
%% is kept here from which a part could be handed out.
-spec recv(stream_handle(), non_neg_integer()) -> {ok, binary()} | error().
recv(Stream, 0) ->
    case ?KNOWN(macula_quic:recv(Stream, infinity)) of
        {error, {peer_send_aborted, _Code}} -> {error, peer_send_aborted};
        Result -> Result
    end;
recv(_Stream, _Count) ->
    {error, not_supported}.

-spec handoff_stream(stream_handle(), pid()) -> ok | error().
handoff_stream(Stream, Pid) ->
    handoff_stream(Stream, Pid, undefined).

%% @doc Hands a stream over, with the messages that the caller has got and not taken yet; then the
%% new owner gets `{handoff_done, Stream, Data}'. It should wait for this before it takes anything
%% of the stream.
-spec handoff_stream(stream_handle(), pid(), term()) -> ok | error().
handoff_stream(Stream, Pid, Data) ->
    case controlling_process(Stream, Pid) of
        ok ->
            Pid ! {handoff_done, Stream, Data},
            ok;
        {error, owner_dead} ->
            {error, owner_down};
        {error, Reason} ->
            {error, Reason}
    end.

-spec close_stream(stream_handle()) -> ok | error().
close_stream(Stream) ->
    ?KNOWN(macula_quic:close_stream(Stream)).

%% @doc What is queued still goes out, then FIN; nothing more is read. Does not wait for that:
%% what comes of it are the messages of the stream.
-spec close_stream(stream_handle(), timeout()) -> ok | error().
close_stream(Stream, _Timeout) ->
    close_stream(Stream).

-spec close_stream(stream_handle(), non_neg_integer(), non_neg_integer()) -> ok | error().
close_stream(Stream, Flags, Code) ->
    async_shutdown_stream(Stream, Flags, Code).

%% @doc As {@link async_shutdown_stream/3}: does not wait.
-spec close_stream(stream_handle(), non_neg_integer(), non_neg_integer(), timeout()) ->
    ok | error().
close_stream(Stream, Flags, Code, _Timeout) ->
    close_stream(Stream, Flags, Code).

-spec shutdown_stream(stream_handle()) -> ok | error().
shutdown_stream(Stream) ->
    shutdown_stream(Stream, ?SHUTDOWN_MS).

-spec shutdown_stream(stream_handle(), timeout()) -> ok | error().
shutdown_stream(Stream, Timeout) ->
    shutdown_stream(Stream, ?QUIC_STREAM_SHUTDOWN_FLAG_GRACEFUL, 0, Timeout).

-spec shutdown_stream(stream_handle(), non_neg_integer(), non_neg_integer()) -> ok | error().
shutdown_stream(Stream, Flags, Code) ->
    shutdown_stream(Stream, Flags, Code, ?SHUTDOWN_MS).

%% @doc Shuts halves of the stream down and waits until both are, the peer's included. Only the
%% owner of a stream that was active or came as `new_stream' is told of that; anybody else gets
%% `{error, timeout}', which without a time given is after 5 s (quicer waits for ever).
-spec shutdown_stream(stream_handle(), non_neg_integer(), non_neg_integer(), timeout()) ->
    ok | error().
shutdown_stream(Stream, Flags, Code, Timeout) when ?IS_TIMEOUT(Timeout) ->
    case async_shutdown_stream(Stream, Flags, Code) of
        ok -> take(stream_closed, Stream, Timeout);
        {error, Reason} -> {error, Reason}
    end;
shutdown_stream(_Stream, _Flags, _Code, _Timeout) ->
    {error, badarg}.

-spec async_shutdown_stream(stream_handle()) -> ok | error().
async_shutdown_stream(Stream) ->
    async_shutdown_stream(Stream, ?QUIC_STREAM_SHUTDOWN_FLAG_GRACEFUL, 0).

-spec async_shutdown_stream(stream_handle(), non_neg_integer(), non_neg_integer()) ->
    ok | error().
async_shutdown_stream(Stream, Flags, Code) ->
    ?KNOWN(macula_quic:async_shutdown_stream(Stream, Flags, Code)).

%%% All handles

-spec controlling_process(handle(), pid()) -> ok | error().
controlling_process(Handle, Pid) ->
    case ?KNOWN(macula_quic:controlling_process(Handle, Pid)) of
        {error, noproc} -> {error, owner_dead};
        Result -> Result
    end.

%% @doc `active' of a stream: `true', `false', `once' or how many messages from now on. Also
%% `packet', as {@link macula_quic:setopt/3} has it. Nothing else can be set.
-spec setopt(stream_handle() | {connection_handle(), stream_handle()}, atom(), term()) ->
    ok | error().
setopt({_Conn, Stream}, active, Value) ->
    setopt(Stream, active, Value);
setopt(Stream, Option, Value) when Option =:= active; Option =:= packet ->
    ?KNOWN(macula_quic:setopt(Stream, Option, Value));
setopt(_Handle, _Option, _Value) ->
    {error, not_supported}.

-spec getopt(handle(), atom()) -> {ok, address()} | error().
getopt(Handle, Option) ->
    getopt(Handle, Option, false).

%% @doc The addresses of both ends; nothing else is known here.
-spec getopt(handle(), atom(), atom()) -> {ok, address()} | error().
getopt(Handle, Option, _Level) when
    Option =:= remote_address; Option =:= param_conn_remote_address
->
    peername(Handle);
getopt(Handle, Option, _Level) when
    Option =:= local_address; Option =:= param_conn_local_address
->
    sockname(Handle);
getopt(_Handle, _Option, _Level) ->
    {error, not_supported}.

-spec peername(connection_handle() | stream_handle()) -> {ok, address()} | error().
peername(Handle) ->
    ?KNOWN(macula_quic:peername(Handle)).

-spec sockname(handle()) -> {ok, address()} | error().
sockname(Handle) ->
    ?KNOWN(macula_quic:sockname(Handle)).

%%% Internal

-spec take(atom(), handle(), timeout()) -> ok | {error, timeout}.
take(What, Handle, Timeout) ->
    receive
        {quic, What, Handle, _} -> ok
    after Timeout ->
        {error, timeout}
    end.

-spec place(term()) -> {ok, macula_quic:place()} | {error, badarg}.
place(Port) when is_integer(Port) ->
    {ok, Port};
place(On) when is_binary(On) ->
    place(binary_to_list(On));
place(On) ->
    case io_lib:latin1_char_list(On) andalso string:split(On, ":", trailing) of
        [Host, Port] -> place(inet:parse_address(string:trim(Host, both, "[]")), Port);
        _ -> {error, badarg}
    end.

-spec place({ok, inet:ip_address()} | {error, einval}, string()) ->
    {ok, macula_quic:place()} | {error, badarg}.
place({ok, Address}, Port) -> ?KNOWN({ok, {Address, list_to_integer(Port)}});
place({error, einval}, _Port) -> {error, badarg}.

-spec dial_ms(timeout()) -> non_neg_integer().
dial_ms(infinity) -> ?LONGEST_DIAL_MS;
dial_ms(Timeout) -> Timeout.

-spec connected({ok, connection_handle()} | error()) ->
    {ok, connection_handle()} | error() | {error, transport_down, transport_down()}.
connected({ok, Conn}) ->
    {ok, Conn};
connected({error, badarg}) ->
    {error, badarg};
connected({error, {Kind, _}} = Refused) when
    Kind =:= bad_address; Kind =:= unknown_option; Kind =:= bad_options
->
    Refused;
connected({error, {Kind, _, _}} = Refused) when Kind =:= bad_option; Kind =:= bad_certificate ->
    Refused;
connected({error, Reason}) ->
    {Status, Code} = status(Reason),
    {error, transport_down, #{status => Status, error => Code, reason => Reason}}.

%% quicer's word for it, and the error code of QUIC, if there is one.
-spec status(term()) -> {atom(), non_neg_integer() | undefined}.
status(timeout) -> {connection_timeout, undefined};
status(idle_timeout) -> {connection_idle, undefined};
status(refused) -> {connection_refused, ?CONNECTION_REFUSED};
status({tls_alert, Alert}) -> {alert(Alert), ?CRYPTO_ERROR + Alert};
status({unverified, Why}) -> {unverified(Why), undefined};
status(version_mismatch) -> {ver_neg_error, undefined};
status({transport_error, Code}) -> {protocol_error, Code};
status({closed_by_peer, Code}) -> {aborted, Code};
status(nxdomain) -> {not_found, undefined};
status(invalid_server_name) -> {invalid_parameter, undefined};
status({socket_error, _Posix}) -> {unreachable, undefined};
status(_Reason) -> {aborted, undefined}.

%% RFC 8446, section 6.
-spec alert(byte()) -> atom().
alert(42) -> bad_certificate;
alert(43) -> unsupported_certificate;
alert(44) -> revoked_certificate;
alert(45) -> expired_certificate;
alert(46) -> unknown_certificate;
alert(116) -> required_certificate;
alert(120) -> alpn_neg_failure;
alert(_Other) -> tls_error.

-spec unverified(atom()) -> atom().
unverified(unknown_issuer) -> cert_untrusted_root;
unverified(expired) -> cert_expired;
unverified(revoked) -> revoked_certificate;
unverified(_Why) -> bad_certificate.

-spec begun({ok, stream_handle()} | error(), #{atom() => term()}) ->
    {ok, stream_handle()} | error().
begun({ok, Stream}, Settings) ->
    %% How data is cut must be known before any of it comes.
    Keys = [Key || Key <- [packet, active], is_map_key(Key, Settings)],
    Set = [setopt(Stream, Key, maps:get(Key, Settings)) || Key <- Keys],
    case [Refused || {error, _} = Refused <- Set] of
        [] -> {ok, Stream};
        [Refused | _] -> unwanted(Stream, Refused)
    end;
begun({error, Reason}, _Settings) ->
    {error, Reason}.

-spec unwanted(stream_handle(), error()) -> error().
unwanted(Stream, Refused) ->
    ok = macula_quic:close_stream(Stream),
    Refused.

-spec sent(Send, stream_handle(), iodata(), non_neg_integer()) ->
    {ok, non_neg_integer()} | error()
when
    Send :: fun((stream_handle(), iodata()) -> ok | error()).
sent(Send, Stream, Data, Flags) when
    Flags band bnot (?SEND_HINTS bor ?QUIC_SEND_FLAG_FIN) =:= 0
->
    case ?KNOWN(Send(Stream, Data)) of
        ok -> finished(Stream, iolist_size(Data), Flags band ?QUIC_SEND_FLAG_FIN);
        {error, Reason} -> {error, Reason}
    end;
sent(_Send, _Stream, _Data, _Flags) ->
    {error, not_supported}.

-spec finished(stream_handle(), non_neg_integer(), non_neg_integer()) -> {ok, non_neg_integer()}.
finished(_Stream, Bytes, 0) ->
    {ok, Bytes};
finished(Stream, Bytes, ?QUIC_SEND_FLAG_FIN) ->
    Graceful = ?QUIC_STREAM_SHUTDOWN_FLAG_GRACEFUL,
    ok = macula_quic:async_shutdown_stream(Stream, Graceful, 0),
    {ok, Bytes}.

%%% Options

%% The options of a connection or listener for `macula_quic'.
-spec options(term()) -> {ok, macula_quic:options()} | error().
options(Opts) ->
    case unfold(Opts) of
        {ok, Options} -> wanted([Option || Option <- Options, not is_idle(Option)]);
        {error, Reason} -> {error, Reason}
    end.

-spec wanted([{atom(), term()}]) -> {ok, macula_quic:options()} | error().
wanted(Options) ->
    case lists:keyfind(fail_if_no_peer_cert, 1, Options) of
        {Key, Value} -> optional_certificate(Key, Value, lists:keydelete(Key, 1, Options));
        false -> {ok, Options}
    end.

%% A listener that verifies its clients wants a certificate of each.
-spec optional_certificate(atom(), term(), [{atom(), term()}]) ->
    {ok, macula_quic:options()} | error().
optional_certificate(Key, Value, Options) ->
    Verify = proplists:get_value(verify, Options, none),
    case Value =:= true orelse Verify =:= none orelse Verify =:= verify_none of
        true -> {ok, Options};
        false -> {error, {bad_option, Key, Value}}
    end.

%% Whether it makes no difference that we do not have it.
-spec is_idle({atom(), term()}) -> boolean().
is_idle({Key, Value}) ->
    lists:member(Key, tuning()) orelse lists:member({Key, Value}, declined()).

%% How quicer works inside.
-spec tuning() -> [atom()].
tuning() ->
    [
        conn_flow_control_window,
        congestion_control_algorithm,
        disconnect_timeout_ms,
        initial_rtt_ms,
        initial_window_packets,
        load_balancing_mode,
        max_ack_delay_ms,
        max_binding_stateless_operations,
        max_bytes_per_key,
        max_operations_per_drain,
        max_stateless_operations,
        max_worker_queue_delay_us,
        maximum_mtu,
        minimum_mtu,
        mtu_discovery_missing_probe_count,
        mtu_discovery_search_complete_timeout_us,
        pacing_enabled,
        retry_memory_limit,
        send_buffering_enabled,
        send_idle_timeout_ms,
        stateless_operation_expiration_ms,
        stream_recv_buffer_default,
        stream_recv_window_default,
        tls_client_max_send_buffer,
        tls_server_max_send_buffer
    ].

%% Features that are not there, not asked for.
-spec declined() -> [{atom(), term()}].
declined() ->
    [
        {allow_insecure, false},
        {custom_verify, false},
        {datagram_receive_enabled, 0},
        {quic_event_mask, 0},
        {server_resumption_level, 0}
    ].

%% `active' and `packet' of a stream; the rest must ask for nothing.
-spec stream_options(term()) ->
    {ok, #{active := term(), packet => term()}}
    | error()
    | {error, stream_open_error | stream_start_error, not_supported}.
stream_options(Opts) ->
    case unfold(with_default({active, true}, Opts)) of
        {ok, Options} -> stream_settings(maps:from_list(Options), #{});
        {error, Reason} -> {error, Reason}
    end.

-spec stream_settings(#{atom() => term()}, #{atom() => term()}) ->
    {ok, #{active := term(), packet => term()}}
    | error()
    | {error, stream_open_error | stream_start_error, not_supported}.
stream_settings(Options, Settings) ->
    lists:foldl(fun stream_setting/2, {ok, Settings}, maps:to_list(Options)).

-spec stream_setting({atom(), term()}, Result) -> Result when
    Result ::
        {ok, #{active := term(), packet => term()}}
        | error()
        | {error, stream_open_error | stream_start_error, not_supported}.
stream_setting({active, Mode}, {ok, Settings}) when ?IS_MODE(Mode) ->
    {ok, Settings#{active => Mode}};
stream_setting({packet, Packet}, {ok, Settings}) when Packet =:= macula; Packet =:= raw ->
    {ok, Settings#{packet => Packet}};
stream_setting({Key, _Value}, {ok, _}) when Key =:= active; Key =:= packet ->
    {error, badarg};
stream_setting({open_flag, ?QUIC_STREAM_OPEN_FLAG_NONE}, Result) ->
    Result;
stream_setting({open_flag, _Flags}, {ok, _}) ->
    {error, stream_open_error, not_supported};
stream_setting({start_flag, Flags}, Result) when
    Flags band bnot ?QUIC_STREAM_START_FLAG_SHUTDOWN_ON_FAIL =:= 0
->
    Result;
stream_setting({start_flag, _Flags}, {ok, _}) ->
    {error, stream_start_error, not_supported};
stream_setting({quic_event_mask, 0}, Result) ->
    Result;
stream_setting({Key, _Value}, {ok, _}) ->
    {error, {unknown_option, Key}};
stream_setting(_Option, Refused) ->
    Refused.

-spec with_default({atom(), term()}, term()) -> term().
with_default({Key, Value}, Opts) when is_map(Opts) -> maps:merge(#{Key => Value}, Opts);
with_default(Default, Opts) when is_list(Opts) -> [Default | Opts];
with_default(_Default, Opts) -> Opts.

%% Of what is given twice, the last counts.
-spec unfold(term()) -> {ok, [{atom(), term()}]} | {error, badarg}.
unfold(Opts) when is_map(Opts) ->
    {ok, maps:to_list(Opts)};
unfold(Opts) when is_list(Opts) ->
    ?KNOWN({ok, maps:to_list(maps:from_list(proplists:unfold(Opts)))});
unfold(_Opts) ->
    {error, badarg}.
