%%% How a node leaves: whatever stops it in order, what was queued goes out within `linger_ms', and
%%% its peers are told. fault_SUITE has the server's own end, and the VM's end under load.
-module(leaving_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([
    stopping_the_application_lets_queued_messages_out/1,
    stopping_the_vm_lets_queued_messages_out/1,
    a_peer_that_takes_nothing_does_not_keep_the_vm_from_stopping_in_order/1,
    of_a_killed_vm_nothing_is_left/1
]).

-define(POOL, macula_gateway_mesh).
-define(MESSAGES, 2_000).

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        stopping_the_application_lets_queued_messages_out,
        stopping_the_vm_lets_queued_messages_out,
        a_peer_that_takes_nothing_does_not_keep_the_vm_from_stopping_in_order,
        of_a_killed_vm_nothing_is_left
    ].

stopping_the_application_lets_queued_messages_out(Config) ->
    %% The first half of an upgrade by hand.
    with_application(Config, #{linger_ms => 4_000}, [], fun(Vm, Peer) ->
        queue_for_a_peer_that_stands_still(Vm, Peer),
        ok = peer:cast(Vm, application, stop, [mesh_vm_app]),
        let_linger(Vm, Peer),
        mesh_load:eventually(false, fun() ->
            Applications = mesh_vm:call(Vm, application, which_applications, []),
            lists:keymember(mesh_vm_app, 1, Applications)
        end),
        assert_all_arrived(Peer)
    end).

stopping_the_vm_lets_queued_messages_out(Config) ->
    %% What an init system does to a release: SIGTERM, which is init:stop/0.
    with_application(Config, #{linger_ms => 4_000}, [], fun(Vm, Peer) ->
        queue_for_a_peer_that_stands_still(Vm, Peer),
        Monitor = stop(Vm),
        let_linger(Vm, Peer),
        ok = await_end(Vm, Monitor),
        assert_all_arrived(Peer)
    end).

a_peer_that_takes_nothing_does_not_keep_the_vm_from_stopping_in_order(Config) ->
    %% Or an init system would kill the node, and with it what other peers were still to get. That
    %% the server was not killed is the bound: its supervisor has no patience with it for more than
    %% five seconds, and what it has queued would take this peer for hours.
    with_application(Config, #{linger_ms => 500}, ["--mode", "slow:10"], fun(Vm, Peer) ->
        ok = mesh_vm:call(Vm, mesh_load, send_frames, frames(Peer)),
        ok = await_end(Vm, stop(Vm)),
        mesh_load:await_peers([Peer], connections_open, 0),
        ?assertMatch(#{closed_by_timeout := 0}, mesh_peer:stats(Peer))
    end).

of_a_killed_vm_nothing_is_left(_Config) ->
    %% Nobody is told; peers notice by their idle timeout. Its sockets go with its process, since
    %% the library starts no other one, and keeps no file.
    Peer = mesh_peer:start(["--idle-timeout-ms", "1000"]),
    Vm = mesh_vm:start(),
    ok = mesh_vm:call(Vm, start_pool, [#{}]),
    Connect = [?POOL, <<"node">>, mesh_peer:address(Peer)],
    {ok, _} = mesh_vm:call(Vm, get_or_create_connection, Connect),
    _ = mesh_peer:wait(Peer, connections_open, 1),
    Process = "/proc/" ++ mesh_vm:os_pid(Vm),
    ?assertEqual([], children(Process)),
    ok = mesh_vm:kill(Vm),
    mesh_load:eventually(false, fun() -> filelib:is_dir(Process) end),
    mesh_load:await_peers([Peer], connections_open, 0),
    ?assertMatch(#{closed_by_timeout := 1}, mesh_peer:stats(Peer)),
    mesh_peer:stop(Peer).

%%% Internal

%% The test stops the application, or the VM; the pool's server has to end by itself then.
with_application(Config, Options, PeerArgs, Test) ->
    Peer = mesh_peer:start(PeerArgs),
    Vm = mesh_vm:start(),
    End = filename:join(proplists:get_value(priv_dir, Config), "end"),
    ok = mesh_vm:call(Vm, mesh_vm_app, run, [Options, End]),
    Test(Vm, Peer),
    ?assertEqual({ok, <<"shutdown">>}, file:read_file(End)),
    ok = file:delete(End),
    unlink(Vm),
    ok = end_vm(Vm),
    mesh_peer:stop(Peer).

%% The test may have stopped it.
end_vm(Vm) ->
    try
        peer:stop(Vm)
    catch
        exit:_ -> ok
    end.

frames(Peer) ->
    [?POOL, <<"node">>, mesh_peer:address(Peer), lists:seq(0, ?MESSAGES - 1)].

stop(Vm) ->
    unlink(Vm),
    Monitor = monitor(process, Vm),
    ok = peer:cast(Vm, init, stop, []),
    Monitor.

await_end(Vm, Monitor) ->
    receive
        {'DOWN', Monitor, process, Vm, _} -> ok
    end.

queue_for_a_peer_that_stands_still(Vm, Peer) ->
    Connect = [?POOL, <<"node">>, mesh_peer:address(Peer)],
    {ok, _} = mesh_vm:call(Vm, get_or_create_connection, Connect),
    mesh_peer:pause(Peer),
    ok = mesh_vm:call(Vm, mesh_load, send_frames, frames(Peer)),
    {ok, Stats} = mesh_vm:call(Vm, get_stats, [?POOL]),
    ?assertMatch(#{outstanding_messages := ?MESSAGES}, Stats).

%% The peer goes on once the server has begun to leave, and finds it there.
let_linger(Vm, Peer) ->
    mesh_load:eventually(await_closed, fun() -> mesh_vm:call(Vm, server_function, []) end),
    mesh_peer:resume(Peer).

assert_all_arrived(Peer) ->
    mesh_load:await_peers([Peer], connections_closed, 1),
    ?assertMatch(
        #{distinct := ?MESSAGES, duplicates := 0, corrupt := 0, close_codes := #{0 := 1}},
        mesh_peer:stats(Peer)
    ).

%% Those of all its threads, but for the VM's own helper, which starts programs.
children(Process) ->
    Pids = [
        Pid
     || Thread <- filelib:wildcard(Process ++ "/task/*"),
        %% A thread may have ended meanwhile.
        {ok, Text} <- [file:read_file(Thread ++ "/children")],
        Pid <- string:lexemes(binary_to_list(Text), " ")
    ],
    Names = [file:read_file("/proc/" ++ Pid ++ "/comm") || Pid <- Pids],
    Names -- [{ok, <<"erl_child_setup\n">>}].
