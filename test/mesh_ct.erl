%%% What the suites share: each test's own pool, peers and tasks, which end with it, and the pool's
%%% figures. Also the callbacks of the supervisor and of the log handler that tests start.
-module(mesh_ct).

-behaviour(supervisor).

-export([begin_test/0, end_test/0, forget_configuration/0]).
-export([start_pool/0, start_pool/1, start_peer/0, start_peer/1, start_relay/1]).
-export([connect/2, open_stream/2, send/3, closed_port/1]).
-export([with/3, stat/1, stat/2, nodes/1, node_id/1]).
-export([start_task/1, await/1, is_waiting/1, flush/0]).
-export([start_supervised/1, init/1, start_logging/0, stop_logging/0, log/2]).

-define(POOL, macula_gateway_mesh).
%% Longer than anything takes on a busy machine: only a failing test ever waits for it.
-define(DEADLINE_MS, 20_000).

%%% Around each test

begin_test() ->
    process_flag(trap_exit, true),
    forget_configuration(),
    undefined = whereis(?POOL),
    ok.

%% Nothing of the machine's own configuration may decide a test.
forget_configuration() ->
    Keys = [tls_certfile, tls_keyfile, tls_mode, tls_cacertfile, tls_verify_hostname],
    lists:foreach(
        fun(Key) ->
            os:unsetenv("MACULA_" ++ string:uppercase(atom_to_list(Key))),
            application:unset_env(macula, Key)
        end,
        Keys
    ).

end_test() ->
    lists:foreach(fun(Ending) -> Ending() end, remembered()),
    erase(?MODULE),
    forget_configuration(),
    mesh_wait:eventually(undefined, fun() -> whereis(?POOL) end).

%% What `Ending' undoes is undone at the end of the test, the last one first.
remember(Ending) ->
    _ = put(?MODULE, [Ending | remembered()]),
    ok.

remembered() ->
    case get(?MODULE) of
        undefined -> [];
        Endings -> Endings
    end.

%%% Pools, peers, messages

start_pool() -> start_pool(#{}).

start_pool(Options) ->
    {ok, Pool} = ?POOL:start_link(Options),
    remember(fun() -> end_pool(Pool) end),
    Pool.

end_pool(Pool) ->
    try
        ?POOL:stop(Pool)
    catch
        exit:_ -> ok
    end.

start_peer() -> start_peer([]).

start_peer(Args) ->
    Peer = mesh_peer:start(Args),
    remember(fun() -> mesh_peer:stop(Peer) end),
    Peer.

%% A line to the port of this peer, whoever listens there; that nobody does is not told.
start_relay(Peer) ->
    Relay = mesh_relay:start(mesh_peer:port(Peer), 1),
    remember(fun() -> mesh_relay:stop(Relay) end),
    Relay.

%% A port of this address that nobody listens at.
closed_port(Ip) ->
    {ok, Socket} = gen_udp:open(0, [{ip, Ip}, family(Ip)]),
    {ok, Port} = inet:port(Socket),
    ok = gen_udp:close(Socket),
    Port.

family(Ip) when tuple_size(Ip) =:= 4 -> inet;
family(_Ip) -> inet6.

%% Runs `Test(Pool, Peers)' with a pool of `Options' and a peer process for each element of
%% `PeerArgs', none of which outlives it.
with(Options, PeerArgs, Test) ->
    forget_configuration(),
    Peers = [mesh_peer:start(Args) || Args <- PeerArgs],
    {ok, Pool} = ?POOL:start_link(Options),
    try
        Test(Pool, Peers)
    after
        unlink(Pool),
        ok = ?POOL:stop(Pool),
        lists:foreach(fun mesh_peer:stop/1, Peers)
    end.

%% The stream of a connection to `Peer', whose node id follows from its port.
connect(Pool, Peer) ->
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, node_id(Peer), mesh_peer:address(Peer)),
    Stream.

%% A stream of plain bytes on that connection.
open_stream(Pool, Peer) ->
    _ = connect(Pool, Peer),
    {ok, #{connection := Connection}} = ?POOL:get_connection_info(Pool, node_id(Peer)),
    {ok, Stream} = macula_quic:open_stream(Connection),
    Stream.

send(Pool, Peer, Message) ->
    ok = ?POOL:send_async(Pool, node_id(Peer), mesh_peer:address(Peer), Message).

node_id(Peer) ->
    mesh_peer:node_id(mesh_peer:port(Peer)).

%% One of the pool's figures.
stat(Key) -> stat(?POOL, Key).

stat(Pool, Key) ->
    {ok, #{Key := Value}} = ?POOL:get_stats(Pool),
    Value.

%% The node ids in the pool, the most recently used first.
nodes(Pool) ->
    {ok, List} = ?POOL:list_connections(Pool),
    [NodeId || {NodeId, _} <- List].

%%% Tasks: calls in a process of their own

start_task(Fun) ->
    Ref = make_ref(),
    Self = self(),
    {Pid, Monitor} = spawn_monitor(fun() -> Self ! {Ref, Fun()} end),
    remember(fun() -> exit(Pid, kill) end),
    {Pid, Monitor, Ref}.

%% What the call returned, or `{exit, Reason}'.
await({Pid, Monitor, Ref}) ->
    receive
        {'DOWN', Monitor, process, Pid, normal} ->
            receive
                {Ref, Result} -> Result
            end;
        {'DOWN', Monitor, process, Pid, Reason} ->
            {exit, Reason}
    after ?DEADLINE_MS ->
        error({never_returned, process_info(Pid, current_stacktrace)})
    end.

%% Whether the task waits in one of our functions for an answer of the native side.
is_waiting({Pid, _Monitor, _Ref}) ->
    case process_info(Pid, [status, current_function]) of
        [{status, waiting}, {current_function, {Module, _, _}}] ->
            lists:member(Module, [?POOL, macula_quic]);
        _ ->
            false
    end.

%% The messages in the mailbox, but for the exits of what was started.
flush() ->
    receive
        {'EXIT', _, _} -> flush();
        Message -> [Message | flush()]
    after 0 ->
        []
    end.

%%% A supervisor of one child

start_supervised(Options) ->
    {ok, Supervisor} = supervisor:start_link(?MODULE, ?POOL:child_spec(Options)),
    remember(fun() -> end_supervisor(Supervisor) end),
    Supervisor.

end_supervisor(Supervisor) ->
    Monitor = monitor(process, Supervisor),
    exit(Supervisor, shutdown),
    receive
        {'DOWN', Monitor, process, Supervisor, _} -> ok
    end.

init(ChildSpec) ->
    {ok, {#{intensity => 10, period => 1}, [ChildSpec]}}.

%%% A log handler that sends the reports of warnings and errors to the test, by their level

start_logging() ->
    Config = #{level => warning, config => #{to => self()}},
    ok = logger:add_handler(?MODULE, ?MODULE, Config),
    remember(fun stop_logging/0).

stop_logging() ->
    _ = logger:remove_handler(?MODULE),
    ok.

log(#{level := Level, msg := {report, Report}}, #{config := #{to := To}}) ->
    To ! {Level, Report};
log(_Event, _Config) ->
    ok.
