%%% @doc A bounded pool of QUIC connections to the nodes of a mesh, kept by node id.
%%%
%%% One process per node of the BEAM, registered as `macula_gateway_mesh' and started by the node's
%%% supervisor. It owns the native pool and answers who could not be answered at once; it never
%%% waits for the network itself. Requests for a connection that is in the pool, and all
%%% asynchronous messages, do not pass through it: they are served in the caller's process.
%%%
%%% It receives from the native side `{mesh_connected, {Tag, From}, Result}', the outcome of a dial
%%% for a waiting caller, `{mesh_delivered, {Tag, From}, Result}', what became of a message of a
%%% caller on another node, `{mesh_event, unverified}' with the pool's first dial, `{mesh_event,
%%% socket_lost}', and `{mesh_closed, Tag, ok}', the end of the pool that it has closed; and sends
%%% only the replies of `gen_server'.
-module(macula_gateway_mesh).

-behaviour(gen_server).

-export([
    start_link/1,
    stop/1,
    child_spec/1,
    get_or_create_connection/3,
    send_async/4,
    send/5,
    remove_connection/2,
    get_connection_info/2,
    list_connections/1,
    get_stats/1,
    pool_size/1,
    set_max_connections/2
]).

-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, code_change/3]).

-export_type([
    options/0,
    server/0,
    node_id/0,
    address/0,
    stream/0,
    connection_info/0,
    stats/0,
    error_reason/0,
    delivery_error/0
]).

-include_lib("kernel/include/logger.hrl").

-define(SERVER, ?MODULE).
-define(CALL_TIMEOUT, 10_000).
%% What terminate/2 waits beyond the linger time, for the last packets to leave.
-define(FAREWELL_MS, 500).
%% What supervisors of the platform give the server to stop.
-define(SHUTDOWN_MS, 5_000).
%% Pids of former incarnations that are still taken for the server.
-define(MAX_FORMER, 100).
%% The longest timeout that Erlang knows.
-define(MAX_TIMEOUT, 16#ffffffff).
-define(IS_TIMEOUT(Ms), is_integer(Ms), Ms >= 0, Ms =< ?MAX_TIMEOUT).

-type server() :: gen_server:server_ref().
-type node_id() :: binary().
-type address() ::
    {inet:ip_address(), inet:port_number()}
    | {string() | binary(), inet:port_number()}
    | string()
    | binary().
%% `{IpTuple, Port}', `{Host, Port}', `"host"', `"host:port"', `"[ipv6]:port"' or an endpoint URL
%% `"https://host:port/path"'. The port defaults to 4433.

-type stream() :: macula_quic:stream().

-type options() :: #{
    cert_file => file:name_all(),
    key_file => file:name_all(),
    verify => macula_quic:verify(),
    cacertfile => file:name_all(),
    verify_hostname => boolean(),
    max_mesh_connections => pos_integer(),
    connect_timeout_ms => pos_integer(),
    idle_timeout_ms => pos_integer(),
    ack_timeout_ms => non_neg_integer(),
    probe_after_ms => non_neg_integer(),
    keep_alive_interval_ms => non_neg_integer(),
    linger_ms => non_neg_integer(),
    queue_max_messages => pos_integer(),
    queue_max_bytes => pos_integer(),
    pool_queue_max_messages => pos_integer(),
    pool_queue_max_bytes => pos_integer(),
    send_watermark_bytes => pos_integer(),
    pool_send_watermark_bytes => pos_integer(),
    max_concurrent_dials => pos_integer(),
    max_pending_dials => pos_integer(),
    dial_backoff_min_ms => non_neg_integer(),
    dial_backoff_max_ms => pos_integer(),
    stream_credit_timeout_ms => pos_integer(),
    udp_buffer_bytes => pos_integer(),
    endpoints => pos_integer(),
    runtime_workers => pos_integer(),
    redelivery => at_most_once | at_least_once,
    term() => term()
}.
%% Defaults and bounds: README.md. Other keys are ignored.

-type connection_info() :: #{
    connection := macula_quic:connection(),
    stream := stream(),
    address := address(),
    last_used := integer(),
    state := idle | busy,
    peername := {inet:ip_address(), inet:port_number()},
    opened_at := integer(),
    rtt_us := non_neg_integer(),
    mtu_bytes := pos_integer(),
    lost_packets := non_neg_integer(),
    sent_bytes := non_neg_integer(),
    received_bytes := non_neg_integer(),
    outstanding_messages := non_neg_integer(),
    outstanding_bytes := non_neg_integer(),
    streams := non_neg_integer()
}.
%% Times are those of `erlang:system_time(second)'. `outstanding' is what is queued or not yet
%% acknowledged; `streams' are those of {@link macula_quic:open_stream/1}.

-type counts() :: #{Cause :: atom() => pos_integer()}.

-type stats() :: #{
    size := non_neg_integer(),
    limit := pos_integer(),
    dialing := non_neg_integer(),
    failing := non_neg_integer(),
    tasks := non_neg_integer(),
    runtime_tasks := non_neg_integer(),
    hits := non_neg_integer(),
    misses := non_neg_integer(),
    dials := non_neg_integer(),
    dial_failures := counts(),
    connections_opened := non_neg_integer(),
    renewals := non_neg_integer(),
    probes := non_neg_integer(),
    suspicions := non_neg_integer(),
    recoveries := non_neg_integer(),
    evictions := non_neg_integer(),
    removals := non_neg_integer(),
    closes := counts(),
    messages_accepted := non_neg_integer(),
    bytes_accepted := non_neg_integer(),
    messages_delivered := non_neg_integer(),
    bytes_delivered := non_neg_integer(),
    messages_dropped := counts(),
    messages_unconfirmed := non_neg_integer(),
    messages_redelivered := non_neg_integer(),
    outstanding_messages := non_neg_integer(),
    outstanding_bytes := non_neg_integer(),
    stream_bytes := non_neg_integer(),
    panics := non_neg_integer(),
    udp_receive_buffer_bytes := non_neg_integer(),
    udp_send_buffer_bytes := non_neg_integer()
}.
%% Counts since the start of this server. A message that was accepted is delivered (acknowledged
%% whole by the peer's transport), dropped (nothing of it was sent), unconfirmed (something of it
%% was sent), or outstanding. Messages refused at the door are counted as dropped too.
%% `stream_bytes' are those that wait on streams of {@link macula_quic:open_stream/1}.

-type error_reason() :: {connect_failed, connect_reason()} | {stream_failed, term()}.
-type connect_reason() ::
    timeout
    | {bad_address, term()}
    | bad_node_id
    | nxdomain
    | invalid_server_name
    | refused
    | {tls_alert, byte()}
    | version_mismatch
    | {transport_error, non_neg_integer()}
    | {closed_by_peer, non_neg_integer()}
    | reset
    | idle_timeout
    | {dead, ack_timeout}
    | {unverified, Why :: atom()}
    | {socket_error, Posix :: atom()}
    | too_many_dials
    | removed
    | pool_closed
    | cancelled.

-type delivery_error() ::
    {connect_failed, connect_reason()}
    | timeout
    | {unconfirmed, timeout | connect_reason() | macula_quic:send_error()}
    | macula_quic:send_error().
%% Why a message is not known to have arrived. `{unconfirmed, _}': something of it was sent, and it
%% may have arrived. All others: nothing of it was sent.

-record(state, {
    pool :: macula_gateway_mesh_nif:pool(),
    %% Marks the messages of our own pool: nobody else's are answered.
    tag = make_ref() :: reference(),
    linger_ms :: non_neg_integer()
}).

%%% The API

%% @doc Starts the pool and registers it. `{error, {bad_option, Key, Value}}' or
%% `{error, {bad_certificate, Path, Reason}}' when an option or a certificate file is of no use, and
%% `{error, {unverified, Reason}}' when peers are to be verified and there is nobody to trust, as on
%% a system without CA certificates; a file that does not exist is only warned of.
-spec start_link(options()) -> {ok, pid()} | {error, term()}.
start_link(Options) when is_map(Options) ->
    case gen_server:start_link({local, ?SERVER}, ?MODULE, Options, []) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Stops the pool: what is queued still goes out, bounded by `linger_ms', then every
%% connection closes.
-spec stop(server()) -> ok.
stop(Server) ->
    gen_server:stop(Server).

%% @doc For a supervisor; `Options' is a map or a property list, of which the first of several
%% values for a key counts.
-spec child_spec(options() | proplists:proplist()) -> supervisor:child_spec().
child_spec(Options) when length(Options) >= 0 ->
    child_spec(proplists:to_map(Options));
child_spec(Options) when is_map(Options) ->
    Shutdown = shutdown_ms(maps:get(linger_ms, Options, undefined)),
    #{id => ?MODULE, start => {?MODULE, start_link, [Options]}, shutdown => Shutdown}.

%% @doc The stream of the pooled connection to `NodeId', dialled at `Address' if there is none.
%% Each {@link macula_quic:send/2} on it is one message. While the connection lives, every call
%% returns the same stream. Exits as `gen_server:call/3' does after 10 seconds.
-spec get_or_create_connection(server(), node_id(), address()) ->
    {ok, stream()} | {error, error_reason()}.
get_or_create_connection(Server, NodeId, Address) ->
    case checkout(Server, NodeId) of
        {ok, Stream} ->
            {ok, Stream};
        miss ->
            Request = {get_or_create_connection, NodeId, Address},
            gen_server:call(current(Server), Request, ?CALL_TIMEOUT)
    end.

%% @doc Sends `Message', as one message, to `NodeId', over the pooled connection or one that is
%% dialled at `Address'. To a node of the field it goes on a stream of its own, and may overtake
%% others; to one of ours messages arrive in order, those of 128 KiB and more excepted. Returns at
%% once, whatever it is given; what cannot be delivered is counted by {@link get_stats/1}.
-spec send_async(server(), node_id(), address(), iodata()) -> ok.
send_async(Server, NodeId, Address, Message) when is_binary(Message) ->
    enqueue(Server, NodeId, Address, Message);
send_async(Server, NodeId, Address, Message) ->
    enqueue(Server, NodeId, Address, flat(Message)).

%% @doc Sends `Message' to `NodeId' and waits until the peer's transport has acknowledged all of it,
%% for `TimeoutMs' at most. While too much is queued for that peer, it waits for room. A message of
%% which nothing has been sent when the time is over is withdrawn: `{error, timeout}'. What the
%% peer's transport has acknowledged, its application may not have read yet. Where the server has to
%% be asked, because it is on another node or has just been restarted, this exits as
%% `gen_server:call/3' does when there is none, or when it ends: then the message may have arrived.
%% A message whose caller dies is withdrawn, too, but not where the server was asked.
-spec send(server(), node_id(), address(), iodata(), non_neg_integer()) ->
    ok | {error, delivery_error()}.
send(Server, NodeId, Address, Message, TimeoutMs) when
    is_binary(Message), ?IS_TIMEOUT(TimeoutMs)
->
    case local_pool(Server) of
        {ok, Pool} -> deliver(Pool, Server, NodeId, Address, Message, TimeoutMs);
        none -> call_send(Server, NodeId, Address, Message, TimeoutMs)
    end;
send(Server, NodeId, Address, Message, TimeoutMs) when
    is_list(Message), ?IS_TIMEOUT(TimeoutMs)
->
    send(Server, NodeId, Address, iolist_to_binary(Message), TimeoutMs).

%% @doc Takes `NodeId' out of the pool: what is queued for it still goes out, bounded by
%% `linger_ms', then its connection closes.
-spec remove_connection(server(), node_id()) -> ok.
remove_connection(Server, NodeId) ->
    gen_server:call(Server, {remove_connection, NodeId}).

%% @doc What is known of the connection to `NodeId'. This is no use of it.
-spec get_connection_info(server(), node_id()) -> {ok, connection_info()} | not_found.
get_connection_info(Server, NodeId) ->
    gen_server:call(Server, {get_connection_info, NodeId}).

%% @doc What is known of each connection, the most recently used first.
-spec list_connections(server()) -> {ok, [{node_id(), connection_info()}]}.
list_connections(Server) ->
    gen_server:call(Server, list_connections).

%% @doc The pool's figures.
-spec get_stats(server()) -> {ok, stats()}.
get_stats(Server) ->
    gen_server:call(Server, get_stats).

%% @doc How many connections are in the pool.
-spec pool_size(server()) -> non_neg_integer().
pool_size(Server) ->
    gen_server:call(Server, pool_size).

%% @doc Sets how many connections the pool may keep; those that are too many go, the least
%% recently used first.
-spec set_max_connections(server(), pos_integer()) ->
    ok | {error, {bad_option, max_mesh_connections, term()}}.
set_max_connections(Server, Limit) ->
    gen_server:call(Server, {set_max_connections, Limit}).

%%% The server

%% @private
-spec init(options()) -> {ok, #state{}} | {stop, term()}.
init(Options) ->
    _ = process_flag(trap_exit, true),
    case open(Options) of
        {ok, Pool, LingerMs} ->
            publish(Pool),
            {ok, #state{pool = Pool, linger_ms = LingerMs}};
        {error, Reason} ->
            {stop, Reason}
    end.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
    {reply, term(), #state{}} | {noreply, #state{}}.
handle_call({get_or_create_connection, NodeId, Address}, From, State) ->
    #state{pool = Pool, tag = Tag} = State,
    case macula_gateway_mesh_nif:pool_connect(Pool, NodeId, Address, {Tag, From}) of
        ok -> {noreply, State};
        Error -> {reply, Error, State}
    end;
handle_call({send, NodeId, Address, Message, TimeoutMs}, From, State) when
    is_binary(Message), ?IS_TIMEOUT(TimeoutMs)
->
    #state{pool = Pool, tag = Tag} = State,
    Token = {Tag, From},
    case macula_gateway_mesh_nif:pool_deliver(Pool, NodeId, Address, Message, TimeoutMs, Token) of
        ok -> {noreply, State};
        closed -> {reply, {error, pool_closed}, State};
        Error -> {reply, Error, State}
    end;
handle_call({remove_connection, NodeId}, _From, State) ->
    _ = macula_gateway_mesh_nif:pool_remove(State#state.pool, NodeId),
    {reply, ok, State};
handle_call({get_connection_info, NodeId}, _From, State) ->
    Now = erlang:system_time(microsecond),
    {reply, macula_gateway_mesh_nif:pool_info(State#state.pool, NodeId, Now), State};
handle_call(list_connections, _From, State) ->
    Now = erlang:system_time(microsecond),
    {reply, {ok, macula_gateway_mesh_nif:pool_list(State#state.pool, Now)}, State};
handle_call(get_stats, _From, State) ->
    {reply, {ok, macula_gateway_mesh_nif:pool_stats(State#state.pool)}, State};
handle_call(pool_size, _From, State) ->
    {reply, macula_gateway_mesh_nif:pool_size(State#state.pool), State};
handle_call({set_max_connections, Limit}, _From, State) ->
    {reply, macula_gateway_mesh_nif:pool_set_limit(State#state.pool, Limit), State};
handle_call(_Request, _From, State) ->
    {reply, {error, unknown_request}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({send_async, NodeId, Address, Message}, State) ->
    _ = macula_gateway_mesh_nif:pool_send(State#state.pool, NodeId, Address, flat(Message)),
    {noreply, State};
handle_cast(_Message, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({mesh_connected, {Tag, From}, Result}, #state{tag = Tag} = State) ->
    gen_server:reply(From, Result),
    {noreply, State};
handle_info({mesh_delivered, {Tag, From}, Result}, #state{tag = Tag} = State) ->
    gen_server:reply(From, Result),
    {noreply, State};
handle_info({mesh_event, unverified}, State) ->
    ?LOG_WARNING(#{msg => "connections of the mesh pool do not verify who answers"}),
    {noreply, State};
handle_info({mesh_event, socket_lost}, State) ->
    ?LOG_ERROR(#{msg => "the UDP socket of the mesh pool has died and is bound anew"}),
    {noreply, State};
handle_info(_Message, State) ->
    {noreply, State}.

%% @private
-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, #state{pool = Pool, tag = Tag, linger_ms = Linger}) ->
    ok = macula_gateway_mesh_nif:pool_close(Pool, Tag),
    Timer = erlang:start_timer(Linger + ?FAREWELL_MS, self(), Tag),
    ok = await_closed(Tag, Timer),
    withdraw().

%% @private
%% The state is the native pool, which stays.
-spec code_change(term(), #state{}, term()) -> {ok, #state{}}.
code_change(_Former, State, _Extra) ->
    {ok, State}.

%%% Internal

%% Long enough to linger; start_link/1 tells who gave a bad time for that.
-spec shutdown_ms(term()) -> pos_integer().
shutdown_ms(LingerMs) when is_integer(LingerMs) ->
    max(?SHUTDOWN_MS, LingerMs + 2 * ?FAREWELL_MS);
shutdown_ms(_Other) ->
    ?SHUTDOWN_MS.

-spec open(options()) ->
    {ok, macula_gateway_mesh_nif:pool(), LingerMs :: non_neg_integer()} | {error, term()}.
open(Options) ->
    case macula_gateway_mesh_tls:pool(Options) of
        {ok, Ours} -> macula_gateway_mesh_nif:pool_open(Ours);
        {error, Reason} -> {error, Reason}
    end.

%% Callers who wait for a dial get their answer before the server goes. Messages that it is given
%% for others meanwhile are lost, uncounted, and must not pile up.
-spec await_closed(reference(), reference()) -> ok.
await_closed(Tag, Timer) ->
    receive
        {mesh_connected, {Tag, From}, Result} ->
            gen_server:reply(From, Result),
            await_closed(Tag, Timer);
        {mesh_delivered, {Tag, From}, Result} ->
            gen_server:reply(From, Result),
            await_closed(Tag, Timer);
        {'$gen_cast', _} ->
            await_closed(Tag, Timer);
        {mesh_closed, Tag, ok} ->
            ok;
        {timeout, Timer, Tag} ->
            ok
    end.

-spec enqueue(server(), node_id(), address(), binary() | no_message) -> ok.
enqueue(Server, NodeId, Address, Message) ->
    case local_pool(Server) of
        {ok, Pool} ->
            try macula_gateway_mesh_nif:pool_send(Pool, NodeId, Address, Message) of
                ok -> ok;
                closed -> cast(Server, NodeId, Address, Message)
            catch
                error:badarg -> cast(Server, NodeId, Address, Message)
            end;
        none ->
            cast(Server, NodeId, Address, Message)
    end.

%% The pool counts what it is given that is no binary.
-spec flat(term()) -> binary() | no_message.
flat(Message) ->
    try
        iolist_to_binary(Message)
    catch
        error:badarg -> no_message
    end.

-spec cast(server(), node_id(), address(), binary() | no_message) -> ok.
cast(Server, NodeId, Address, Message) ->
    gen_server:cast(current(Server), {send_async, NodeId, Address, Message}).

%% No timeout is needed: the native side answers each message that it has taken once.
-spec deliver(
    macula_gateway_mesh_nif:pool(), server(), node_id(), address(), binary(), non_neg_integer()
) -> ok | {error, delivery_error()}.
deliver(Pool, Server, NodeId, Address, Message, TimeoutMs) ->
    Token = make_ref(),
    try macula_gateway_mesh_nif:pool_deliver(Pool, NodeId, Address, Message, TimeoutMs, Token) of
        ok ->
            receive
                {mesh_delivered, Token, Result} -> Result
            end;
        closed ->
            call_send(Server, NodeId, Address, Message, TimeoutMs);
        {error, Reason} ->
            {error, Reason}
    catch
        error:badarg -> call_send(Server, NodeId, Address, Message, TimeoutMs)
    end.

%% The server answers in time, unless it dies.
-spec call_send(server(), node_id(), address(), binary(), non_neg_integer()) ->
    ok | {error, delivery_error()}.
call_send(Server, NodeId, Address, Message, TimeoutMs) ->
    gen_server:call(current(Server), {send, NodeId, Address, Message, TimeoutMs}, infinity).

%% Served from the caller's process: the pool of this server, or of a former one, is at hand. It is
%% no argument (badarg) when the native module was purged since: what then goes to the server makes
%% that fail, and its supervisor starts one with a pool of now.
-spec checkout(server(), node_id()) -> {ok, stream()} | miss.
checkout(Server, NodeId) ->
    case local_pool(Server) of
        {ok, Pool} ->
            try
                macula_gateway_mesh_nif:pool_checkout(Pool, NodeId)
            catch
                error:badarg -> miss
            end;
        none ->
            miss
    end.

%% Who is to be called: a caller may still hold the pid of a server that was restarted since.
-spec current(server()) -> server().
current(Server) when is_pid(Server) ->
    case persistent_term:get(?MODULE, undefined) of
        {Pid, _Pool, _Former} when Pid =:= Server ->
            still(Server);
        {_Pid, _Pool, Former} ->
            case lists:member(Server, Former) of
                true -> ?SERVER;
                false -> Server
            end;
        undefined ->
            Server
    end;
current(Server) ->
    Server.

%% A successor that has its name and not yet its pool answers for the one that has just died.
-spec still(pid()) -> server().
still(Server) ->
    case is_process_alive(Server) of
        true -> Server;
        false -> ?SERVER
    end.

%% The native pool behind a server reference, if that is the server of this node. Its term is
%% written once per start and once per stop of the server, and read without copying by everyone.
-spec local_pool(server()) -> {ok, macula_gateway_mesh_nif:pool()} | none.
local_pool(Server) ->
    case persistent_term:get(?MODULE, undefined) of
        {Server, Pool, _Former} when Pool =/= none -> {ok, Pool};
        {_Pid, Pool, Former} when Pool =/= none -> other_name(Server, Pool, Former);
        _NoPool -> none
    end.

-spec other_name(server(), macula_gateway_mesh_nif:pool(), [pid()]) ->
    {ok, macula_gateway_mesh_nif:pool()} | none.
other_name(?SERVER, Pool, _Former) ->
    {ok, Pool};
other_name({?SERVER, Node}, Pool, _Former) when Node =:= node() ->
    {ok, Pool};
other_name(Pid, Pool, Former) when is_pid(Pid), node(Pid) =:= node() ->
    case lists:member(Pid, Former) of
        true -> {ok, Pool};
        false -> none
    end;
other_name(_Server, _Pool, _Former) ->
    none.

-spec publish(macula_gateway_mesh_nif:pool()) -> ok.
publish(Pool) ->
    Former =
        case persistent_term:get(?MODULE, undefined) of
            {Pid, _OldPool, Older} -> lists:sublist([Pid | Older], ?MAX_FORMER);
            undefined -> []
        end,
    persistent_term:put(?MODULE, {self(), Pool, Former}).

%% Or a pool that has been stopped would be held until the VM ends.
-spec withdraw() -> ok.
withdraw() ->
    case persistent_term:get(?MODULE, undefined) of
        {Pid, _Pool, Former} when Pid =:= self() ->
            persistent_term:put(?MODULE, {Pid, none, Former});
        _Other ->
            ok
    end.
