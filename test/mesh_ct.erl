%%% What the suites share: each test's own pool, peers and tasks, which end with it, and waiting for
%%% what must become true. Also the callbacks of the supervisor and of the log handler that tests
%%% start.
-module(mesh_ct).

-behaviour(supervisor).

-export([begin_test/0, end_test/0, forget_configuration/0]).
-export([start_pool/0, start_pool/1, start_peer/0, start_peer/1, connect/2, send/3]).
-export([start_task/1, await/1, is_waiting/1, poll_until/1]).
-export([stat/1, node_id/1, flush/0]).
-export([start_supervised/1, init/1, start_logging/0, stop_logging/0, log/2]).

-define(POOL, macula_gateway_mesh).
-define(POLL_MS, 10).
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
    poll_until(fun() -> whereis(?POOL) =:= undefined end).

%% What `Ending' undoes is undone at the end of the test, the last one first.
remember(Ending) ->
    put(?MODULE, [Ending | remembered()]).

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
    remember(fun() -> end_peer(Peer) end),
    Peer.

%% A test may have ended its peer itself: that of a peer that is gone is no failure. Nor is one that
%% a failed test has left standing still.
end_peer(Peer) ->
    mesh_load:resume(Peer),
    mesh_peer:stop(Peer).

%% The stream of a connection to `Peer', whose node id follows from its port.
connect(Pool, Peer) ->
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, node_id(Peer), mesh_peer:address(Peer)),
    Stream.

send(Pool, Peer, Message) ->
    ok = ?POOL:send_async(Pool, node_id(Peer), mesh_peer:address(Peer), Message).

node_id(Peer) ->
    mesh_peer:node_id(mesh_peer:port(Peer)).

%% One of the pool's figures.
stat(Key) ->
    {ok, Stats} = ?POOL:get_stats(?POOL),
    maps:get(Key, Stats).

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

%% Whether the task sits in a `receive'.
is_waiting({Pid, _Monitor, _Ref}) ->
    process_info(Pid, status) =:= {status, waiting}.

%%% Waiting

%% Waits until `Fun' returns something else than `false', and returns that.
poll_until(Fun) ->
    poll_until(Fun, erlang:monotonic_time(millisecond) + ?DEADLINE_MS).

poll_until(Fun, Deadline) ->
    case Fun() of
        false ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({never_true, Fun}),
            receive
            after ?POLL_MS -> poll_until(Fun, Deadline)
            end;
        Result ->
            Result
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

%%% A log handler that sends the reports of warnings to the test

start_logging() ->
    Config = #{level => warning, config => #{to => self()}},
    ok = logger:add_handler(?MODULE, ?MODULE, Config),
    remember(fun stop_logging/0).

stop_logging() ->
    _ = logger:remove_handler(?MODULE),
    ok.

log(#{level := warning, msg := {report, Report}}, #{config := #{to := To}}) ->
    To ! {warning, Report};
log(_Event, _Config) ->
    ok.
