%%% The pool when things die: the server, its callers, its peers, the VM. Nothing stays behind, and
%%% what can still be delivered is. FAULT_ROUNDS sets how often things are killed at random moments.
-module(fault_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_testcase/2]).
-export([
    killing_the_server_a_caller_or_a_peer_leaves_nothing_behind/1,
    a_killed_server_closes_its_connections/1,
    a_restarted_server_serves_those_who_hold_the_former_pid/1,
    the_pid_of_a_server_that_has_just_died_leads_to_its_successor/1,
    the_pids_of_servers_that_were_stopped_lead_to_their_successor/1,
    a_supervisor_s_shutdown_closes_connections_in_order/1,
    stopping_lets_queued_messages_out/1,
    stopping_ends_although_a_peer_stands_still/1,
    messages_for_a_server_that_stops_do_not_pile_up/1,
    the_vm_halts_under_load_with_its_exit_status/1,
    the_vm_stops_under_load_with_its_exit_status/1,
    a_pool_whose_socket_loses_its_port_goes_on_from_another/1,
    a_connection_closed_by_its_peer_leaves_the_pool_at_once/1,
    the_next_dial_uses_the_address_just_given/1,
    a_peer_that_restarts_on_its_port_is_found_again/1,
    messages_queued_for_a_killed_peer_reach_its_successor/1,
    messages_for_a_peer_that_is_gone_for_good_are_dropped_and_counted/1,
    an_idle_connection_outlives_the_peer_s_shorter_idle_timeout/1,
    without_keep_alive_the_negotiated_idle_timeout_closes/1,
    a_name_that_does_not_resolve_fails_its_dial/1,
    a_peer_is_found_by_its_name/1,
    without_file_descriptors_what_needs_one_says_so_and_the_rest_goes_on/1
]).

-define(POOL, macula_gateway_mesh).
-define(WAIT_MS, 10_000).
%% Of what a machine that stands still may spoil.
-define(TRIES, 10).

suite() -> [{timetrap, {minutes, 3}}].

all() ->
    [
        killing_the_server_a_caller_or_a_peer_leaves_nothing_behind,
        a_killed_server_closes_its_connections,
        a_restarted_server_serves_those_who_hold_the_former_pid,
        the_pid_of_a_server_that_has_just_died_leads_to_its_successor,
        the_pids_of_servers_that_were_stopped_lead_to_their_successor,
        a_supervisor_s_shutdown_closes_connections_in_order,
        stopping_lets_queued_messages_out,
        stopping_ends_although_a_peer_stands_still,
        messages_for_a_server_that_stops_do_not_pile_up,
        the_vm_halts_under_load_with_its_exit_status,
        the_vm_stops_under_load_with_its_exit_status,
        a_pool_whose_socket_loses_its_port_goes_on_from_another,
        a_connection_closed_by_its_peer_leaves_the_pool_at_once,
        the_next_dial_uses_the_address_just_given,
        a_peer_that_restarts_on_its_port_is_found_again,
        messages_queued_for_a_killed_peer_reach_its_successor,
        messages_for_a_peer_that_is_gone_for_good_are_dropped_and_counted,
        an_idle_connection_outlives_the_peer_s_shorter_idle_timeout,
        without_keep_alive_the_negotiated_idle_timeout_closes,
        a_name_that_does_not_resolve_fails_its_dial,
        a_peer_is_found_by_its_name,
        without_file_descriptors_what_needs_one_says_so_and_the_rest_goes_on
    ].

init_per_testcase(_Name, Config) ->
    ok = mesh_ct:forget_configuration(),
    Config.

killing_the_server_a_caller_or_a_peer_leaves_nothing_behind(_Config) ->
    %% A node runs for months; a leak of one socket or thread per crash would end it. Counted by
    %% the kernel and by the peers, since a figure of the pool itself would prove nothing.
    Seed = mesh_load:seed(),
    Rounds = list_to_integer(os:getenv("FAULT_ROUNDS", "20")),
    _ = ct:timetrap({seconds, 120 + 5 * Rounds}),
    Options = #{
        linger_ms => 100, max_mesh_connections => 4, queue_max_messages => 500, runtime_workers => 2
    },
    mesh_vm:with(fun(Vm) ->
        Peers = [mesh_peer:start(), mesh_peer:start()],
        ok = round_of(none, Vm, Options, [mesh_peer:start() | Peers]),
        Before = mesh_vm:footprint(Vm),
        lists:foreach(
            fun(Round) ->
                Victim = lists:nth(rand:uniform(3), [server, caller, peer]),
                ct:log("seed ~b, round ~b: ~s", [Seed, Round, Victim]),
                ok = round_of(Victim, Vm, Options, [mesh_peer:start() | Peers]),
                mesh_load:eventually(Before, fun() -> mesh_vm:footprint(Vm) end)
            end,
            lists:seq(1, Rounds)
        ),
        lists:foreach(fun mesh_peer:stop/1, Peers)
    end).

a_killed_server_closes_its_connections(_Config) ->
    %% terminate/2 does not run then: without an eye on its owner the pool would live on unseen.
    %% Nobody restarts this server, so no successor can do it.
    Peer = mesh_peer:start(),
    {ok, Pool} = ?POOL:start_link(#{}),
    lists:foreach(
        fun(N) ->
            NodeId = mesh_peer:node_id(N),
            {ok, _} = ?POOL:get_or_create_connection(Pool, NodeId, mesh_peer:address(Peer))
        end,
        lists:seq(1, 20)
    ),
    unlink(Pool),
    exit(Pool, kill),
    mesh_load:await_peers([Peer], connections_closed, 20),
    ?assertMatch(#{close_codes := #{0 := 20}}, mesh_peer:stats(Peer)),
    mesh_peer:stop(Peer).

a_restarted_server_serves_those_who_hold_the_former_pid(_Config) ->
    %% The gateway of a node keeps the pid that it saw at boot, for ever.
    with_supervised(#{}, fun(_Supervisor, Peer) ->
        Address = mesh_peer:address(Peer),
        First = whereis(?POOL),
        {ok, Old} = ?POOL:get_or_create_connection(First, <<"node">>, Address),
        Second = kill_and_await_successor(First),
        Third = kill_and_await_successor(Second),
        ok = ?POOL:send_async(First, <<"node">>, Address, mesh_peer:frame(0, 8)),
        {ok, Stream} = ?POOL:get_or_create_connection(Second, <<"node">>, Address),
        ?assertEqual({ok, Stream}, ?POOL:get_or_create_connection(First, <<"node">>, Address)),
        ?assertMatch({ok, #{stream := Stream}}, ?POOL:get_connection_info(Third, <<"node">>)),
        ok = macula_quic:send(Stream, mesh_peer:frame(1, 8)),
        ?assertMatch(#{distinct := 2}, mesh_peer:wait(Peer, messages, 2)),
        mesh_load:eventually({error, pool_closed}, fun() -> macula_quic:send(Old, <<"late">>) end),
        mesh_load:await_peers([Peer], connections_open, 1),
        %% Not only when the answer is at hand.
        ok = ?POOL:remove_connection(Third, <<"node">>),
        {ok, Fresh} = ?POOL:get_or_create_connection(First, <<"node">>, Address),
        ?assertNotEqual(Stream, Fresh),
        ?assertEqual({ok, Fresh}, ?POOL:get_or_create_connection(Third, <<"node">>, Address)),
        ok = ?POOL:send_async(Second, <<"node">>, Address, mesh_peer:frame(2, 8)),
        ?assertMatch(#{distinct := 3}, mesh_peer:wait(Peer, messages, 3)),
        %% A pid that never was the server is none.
        {Stranger, Monitor} = spawn_monitor(fun() -> ok end),
        receive
            {'DOWN', Monitor, process, Stranger, _} -> ok
        end,
        ?assertExit({noproc, _}, ?POOL:get_or_create_connection(Stranger, <<"node">>, Address))
    end).

the_pid_of_a_server_that_has_just_died_leads_to_its_successor(_Config) ->
    %% A successor is registered a moment before it has its pool. This process stands where it is
    %% then: it has the name, and the dead server's pool is still the published one.
    {ok, Pool} = ?POOL:start_link(#{}),
    unlink(Pool),
    Monitor = monitor(process, Pool),
    exit(Pool, kill),
    receive
        {'DOWN', Monitor, process, Pool, killed} -> ok
    end,
    true = register(?POOL, self()),
    {Caller, Call} = spawn_monitor(fun() ->
        exit(?POOL:get_or_create_connection(Pool, <<"node">>, nowhere))
    end),
    receive
        {'$gen_call', From, {get_or_create_connection, <<"node">>, nowhere}} ->
            gen_server:reply(From, answered);
        {'DOWN', Call, process, Caller, Early} ->
            ct:fail(Early)
    end,
    receive
        {'DOWN', Call, process, Caller, Outcome} -> ?assertEqual(answered, Outcome)
    end.

the_pids_of_servers_that_were_stopped_lead_to_their_successor(_Config) ->
    %% As above, but the pool has been taken back. A message that went to the dead would be lost,
    %% and nobody would know.
    Former = [
        begin
            {ok, Pool} = ?POOL:start_link(#{}),
            ok = ?POOL:stop(Pool),
            Pool
        end
     || _ <- [1, 2]
    ],
    true = register(?POOL, self()),
    [
        begin
            ok = ?POOL:send_async(Pool, <<"node">>, nowhere, <<"message">>),
            receive
                {'$gen_cast', {send_async, <<"node">>, nowhere, <<"message">>}} -> ok
            after ?WAIT_MS -> error({never_sent, Pool})
            end,
            {Caller, Call} = spawn_monitor(fun() ->
                exit(?POOL:send(Pool, <<"node">>, nowhere, <<"message">>, ?WAIT_MS))
            end),
            receive
                {'$gen_call', From, {send, <<"node">>, nowhere, <<"message">>, ?WAIT_MS}} ->
                    gen_server:reply(From, answered);
                {'DOWN', Call, process, Caller, Early} ->
                    error({Early, Pool})
            end,
            receive
                {'DOWN', Call, process, Caller, Outcome} -> ?assertEqual(answered, Outcome)
            end
        end
     || Pool <- Former
    ].

a_supervisor_s_shutdown_closes_connections_in_order(_Config) ->
    %% Peers of a node that is upgraded should know at once that it has gone, and get what it had
    %% for them. The original skips this when its supervisor stops it.
    with_supervised(#{linger_ms => 4_000}, fun(Supervisor, Peer) ->
        Address = mesh_peer:address(Peer),
        lists:foreach(
            fun(N) ->
                {ok, _} = ?POOL:get_or_create_connection(?POOL, mesh_peer:node_id(N), Address)
            end,
            lists:seq(1, 20)
        ),
        mesh_load:send_frames(?POOL, mesh_peer:node_id(1), Address, lists:seq(0, 199)),
        ok = supervisor:terminate_child(Supervisor, ?POOL),
        mesh_load:await_peers([Peer], connections_closed, 20),
        ?assertMatch(
            #{close_codes := #{0 := 20}, closed_by_timeout := 0, distinct := 200},
            mesh_peer:stats(Peer)
        )
    end).

stopping_lets_queued_messages_out(_Config) ->
    %% Whoever stops a pool has often just sent the last words of its node.
    Peer = mesh_peer:start(),
    {ok, Pool} = ?POOL:start_link(#{linger_ms => 40_000}),
    mesh_load:send_frames(Pool, <<"pooled">>, mesh_peer:address(Peer), lists:seq(0, 4_999)),
    mesh_load:send_frames(Pool, <<"dialled">>, mesh_peer:address(Peer), lists:seq(5_000, 5_099)),
    ok = ?POOL:stop(Pool),
    mesh_load:await_peers([Peer], connections_closed, 2),
    ?assertMatch(
        #{distinct := 5_100, duplicates := 0, corrupt := 0, close_codes := #{0 := 2}},
        mesh_peer:stats(Peer)
    ),
    mesh_peer:stop(Peer).

stopping_ends_although_a_peer_stands_still(_Config) ->
    %% A peer that takes nothing must not keep a node from stopping: lingering has an end. Nothing
    %% else ends this connection, whose both ends are as patient as they can be told to be.
    Patience = 3_600_000,
    Peer = mesh_peer:start(["--idle-timeout-ms", integer_to_list(Patience)]),
    {ok, Pool} = ?POOL:start_link(#{
        linger_ms => 200, ack_timeout_ms => 0, idle_timeout_ms => Patience
    }),
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"still">>, mesh_peer:address(Peer)),
    ok = mesh_peer:pause(Peer),
    mesh_load:send_frames(Pool, <<"still">>, mesh_peer:address(Peer), lists:seq(0, 499)),
    ok = ?POOL:stop(Pool),
    ?assertEqual({error, pool_closed}, macula_quic:send(Stream, <<"late">>)),
    ok = mesh_peer:resume(Peer),
    mesh_load:await_peers([Peer], connections_closed, 1),
    ?assertMatch(#{close_codes := #{0 := 1}}, mesh_peer:stats(Peer)),
    mesh_peer:stop(Peer).

messages_for_a_server_that_stops_do_not_pile_up(_Config) ->
    %% A node is busy to its last second, and must not run out of memory in it.
    Peer = mesh_peer:start(),
    {ok, Pool} = ?POOL:start_link(#{linger_ms => 40_000, ack_timeout_ms => 0}),
    Address = mesh_peer:address(Peer),
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"still">>, Address),
    ok = mesh_peer:pause(Peer),
    mesh_load:send_frames(Pool, <<"still">>, Address, lists:seq(0, 99)),
    {_Stopper, Stopping} = spawn_monitor(?POOL, stop, [Pool]),
    mesh_wait:eventually({error, pool_closed}, fun() -> macula_quic:send(Stream, <<>>) end),
    Flood = [?POOL:send_async(Pool, <<"still">>, Address, <<"lost">>) || _ <- lists:seq(1, 1_000)],
    ?assertEqual([ok], lists:usort(Flood)),
    Left = fun() -> process_info(Pool, message_queue_len) end,
    mesh_wait:eventually({message_queue_len, 0}, Left),
    ok = mesh_peer:resume(Peer),
    receive
        {'DOWN', Stopping, process, _, Reason} -> ?assertEqual(normal, Reason)
    after ?WAIT_MS -> error(never_stopped)
    end,
    mesh_peer:stop(Peer).

the_vm_halts_under_load_with_its_exit_status(_Config) ->
    %% Threads of a library that still run while the VM ends are a classic crash; an init system
    %% then restarts, or reports, a node that has stopped in order.
    ends_under_load_with(7, "halt").

the_vm_stops_under_load_with_its_exit_status(_Config) ->
    %% As above, by the way that releases end.
    ends_under_load_with(0, "stop").

a_pool_whose_socket_loses_its_port_goes_on_from_another(_Config) ->
    %% The kernel takes sockets from their owners when it is told to. What is sent next gives the
    %% socket another port, and to the peer that is a client that has moved.
    mesh_ct:with(#{}, [[]], fun(Pool, [Peer]) ->
        Address = {{127, 0, 0, 1}, mesh_peer:port(Peer)},
        Send = fun(Number) ->
            ?POOL:send(Pool, <<"n">>, Address, mesh_peer:frame(Number, 64), ?WAIT_MS)
        end,
        ok = Send(0),
        {ok, #{connection := Connection}} = ?POOL:get_connection_info(Pool, <<"n">>),
        {ok, {_, Port}} = macula_quic:sockname(Connection),
        case quic_ct:kill_socket(Port) of
            ok ->
                ?assertEqual([ok || _ <- lists:seq(1, 50)], [Send(N) || N <- lists:seq(1, 50)]),
                {ok, {_, Now}} = macula_quic:sockname(Connection),
                %% The kernel chooses among thirty thousand, and may choose the same.
                Now =/= Port orelse ct:pal("the kernel has given port ~b again", [Port]),
                ?assertMatch(
                    #{distinct := 51, duplicates := 0, connections_opened := 1},
                    mesh_peer:wait(Peer, distinct, 51)
                );
            {skip, _} = Skip ->
                Skip
        end
    end).

a_connection_closed_by_its_peer_leaves_the_pool_at_once(_Config) ->
    %% The original hands out dead connections until somebody has tried to use one.
    mesh_ct:with(#{}, [[], []], fun(Pool, [Peer, Other]) ->
        Address = mesh_peer:address(Peer),
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"other">>, mesh_peer:address(Other)),
        {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
        _ = mesh_peer:wait(Peer, connections_opened, 1),
        {closed, 1} = mesh_peer:command(Peer, "close 9"),
        mesh_load:eventually([<<"other">>], fun() -> mesh_ct:nodes(Pool) end),
        ?assertEqual(1, ?POOL:pool_size(Pool)),
        %% Its stream learns of it a moment after the pool.
        mesh_load:eventually(1, fun() -> mesh_ct:stat(Pool, tasks) end),
        ?assertEqual(not_found, ?POOL:get_connection_info(Pool, <<"node">>)),
        ?assertEqual({error, {closed_by_peer, 9}}, macula_quic:send(Stream, <<"late">>)),
        ?assertEqual(#{closed_by_peer => 1}, mesh_ct:stat(Pool, closes)),
        {ok, Fresh} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
        ?assertNotEqual(Stream, Fresh),
        ok = macula_quic:send(Fresh, <<"in time">>),
        ?assertMatch(#{messages := 1}, mesh_peer:wait(Peer, messages, 1))
    end).

the_next_dial_uses_the_address_just_given(_Config) ->
    %% A node that moved is reached where the routing table says that it is now; the original
    %% retries where it was.
    mesh_ct:with(#{}, [[], []], fun(Pool, [Former, Present]) ->
        Moved = mesh_peer:address(Former),
        {ok, Old} = ?POOL:get_or_create_connection(Pool, <<"n">>, Moved),
        Address = mesh_peer:address(Present),
        ?assertEqual({ok, Old}, ?POOL:get_or_create_connection(Pool, <<"n">>, Address)),
        mesh_peer:stop(Former),
        mesh_load:eventually([], fun() -> mesh_ct:nodes(Pool) end),
        {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"n">>, Address),
        ?assertMatch({ok, #{address := Address}}, ?POOL:get_connection_info(Pool, <<"n">>)),
        ?assertEqual({ok, Address}, macula_quic:peername(Stream)),
        ?assertNotEqual(Old, Stream),
        %% Who still gives the former one reaches the node all the same.
        ok = ?POOL:send_async(Pool, <<"n">>, Moved, mesh_peer:frame(0, 8)),
        ?assertMatch(
            #{connections_opened := 1, connections_open := 1, distinct := 1},
            mesh_peer:wait(Present, messages, 1)
        )
    end).

a_peer_that_restarts_on_its_port_is_found_again(_Config) ->
    %% After a power cut the new process knows nothing of the old connection and says nothing:
    %% only the idle timeout tells.
    Options = #{idle_timeout_ms => 1_000, keep_alive_interval_ms => 300},
    mesh_ct:with(Options, [], fun(Pool, []) ->
        Peer = mesh_peer:start(),
        Address = mesh_peer:address(Peer),
        {ok, Old} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
        Successor = restart(Peer),
        mesh_load:eventually(0, fun() -> mesh_ct:stat(Pool, tasks) end),
        ?assertEqual([], mesh_ct:nodes(Pool)),
        ?assertEqual(#{idle_timeout => 1}, mesh_ct:stat(Pool, closes)),
        ?assertEqual({error, idle_timeout}, macula_quic:send(Old, <<"late">>)),
        {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
        ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
        ?assertMatch(#{distinct := 1}, mesh_peer:wait(Successor, messages, 1)),
        mesh_peer:stop(Successor)
    end).

messages_queued_for_a_killed_peer_reach_its_successor(_Config) ->
    %% What was never sent need not be lost with the connection. The peer stands still, so exactly
    %% as many messages as it gave stream credits are on their way when it dies.
    %% The relay keeps from the pool that the port is closed until the successor is there.
    Options = #{idle_timeout_ms => 4_000, ack_timeout_ms => 0, connect_timeout_ms => 60_000},
    mesh_ct:with(Options, [], fun(Pool, []) ->
        Peer = mesh_peer:start(["--bidi-streams", "100"]),
        Relay = mesh_relay:start(mesh_peer:port(Peer), 1),
        Address = mesh_relay:address(Relay),
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
        ok = mesh_peer:pause(Peer),
        mesh_load:send_frames(Pool, <<"node">>, Address, lists:seq(0, 499)),
        Successor = restart(Peer),
        ?assertMatch(
            #{messages := 400, distinct := 400, duplicates := 0},
            mesh_peer:wait(Successor, messages, 400)
        ),
        Stats = mesh_load:assert_accounted(Pool, 500),
        ?assertMatch(
            #{messages_accepted := 500, messages_delivered := 400, messages_unconfirmed := 100},
            Stats
        ),
        mesh_relay:stop(Relay),
        mesh_peer:stop(Successor)
    end).

messages_for_a_peer_that_is_gone_for_good_are_dropped_and_counted(_Config) ->
    %% Their memory must come back, and the operator must see the loss.
    mesh_ct:with(#{}, [], fun(Pool, []) ->
        Peer = mesh_peer:start(["--bidi-streams", "100"]),
        Address = mesh_peer:address(Peer),
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
        ok = mesh_peer:pause(Peer),
        mesh_load:send_frames(Pool, <<"node">>, Address, lists:seq(0, 499)),
        ok = mesh_peer:kill(Peer),
        mesh_load:eventually(100, fun() -> mesh_ct:stat(Pool, messages_unconfirmed) end),
        mesh_load:eventually(#{refused => 400}, fun() ->
            mesh_ct:stat(Pool, messages_dropped)
        end),
        ?assertMatch(#{size := 0, dialing := 0}, mesh_load:assert_accounted(Pool, 500)),
        mesh_load:eventually(0, fun() -> mesh_ct:stat(Pool, tasks) end)
    end).

an_idle_connection_outlives_the_peer_s_shorter_idle_timeout(_Config) ->
    %% The lower idle timeout of both sides holds. Our keep-alive of 20 seconds would be too late
    %% for a peer that gives up after one, and healthy connections would close all the time.
    %% A machine that stands still for most of that second closes one rightly, but not each.
    Options = #{keep_alive_interval_ms => 20_000},
    Args = ["--idle-timeout-ms", "1000", "--keep-alive-ms", "0"],
    mesh_ct:with(Options, [Args], fun(Pool, [Peer]) ->
        Outlives = fun(Number) -> outlives_a_rest(Pool, Peer, Number) end,
        ?assert(lists:any(Outlives, lists:seq(1, ?TRIES)))
    end).

%% Whether this connection does, the peer's only one. The wait of three and a half of its timeouts
%% is the claim itself.
outlives_a_rest(Pool, Peer, Number) ->
    NodeId = mesh_peer:node_id(Number),
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, NodeId, mesh_peer:address(Peer)),
    case mesh_peer:command(Peer, io_lib:format("wait connections_closed ~b 3500", [Number])) of
        {timeout, Stats} ->
            ?assertMatch(#{connections_open := 1, connections_opened := Number}, Stats),
            ?assertMatch({ok, #{stream := Stream}}, ?POOL:get_connection_info(Pool, NodeId)),
            ok = macula_quic:send(Stream, <<"still there">>),
            ?assertMatch(#{messages := 1}, mesh_peer:wait(Peer, messages, 1)),
            true;
        {stats, _} ->
            false
    end.

without_keep_alive_the_negotiated_idle_timeout_closes(_Config) ->
    %% Proves that the peer of the case above really gives up, and that the pool then knows.
    Args = ["--idle-timeout-ms", "1000", "--keep-alive-ms", "0"],
    mesh_ct:with(#{keep_alive_interval_ms => 0}, [Args], fun(Pool, [Peer]) ->
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"n">>, mesh_peer:address(Peer)),
        mesh_load:eventually([], fun() -> mesh_ct:nodes(Pool) end),
        ?assertEqual(#{idle_timeout => 1}, mesh_ct:stat(Pool, closes)),
        ?assertMatch(#{closed_by_timeout := 1}, mesh_peer:wait(Peer, connections_closed, 1))
    end).

a_name_that_does_not_resolve_fails_its_dial(_Config) ->
    %% Names in routing tables go stale. The top-level domain `invalid' never exists (RFC 2606).
    mesh_ct:with(#{connect_timeout_ms => 9_000}, [], fun(Pool, []) ->
        Address = {"no-such-node.invalid", 4433},
        [
            ?assertEqual(
                {error, {connect_failed, nxdomain}},
                ?POOL:get_or_create_connection(Pool, <<"n">>, Each)
            )
         || Each <- [Address, <<"https://no-such-node.invalid/x">>]
        ],
        ok = ?POOL:send_async(Pool, <<"n">>, Address, <<"lost">>),
        mesh_load:eventually(#{nxdomain => 1}, fun() ->
            mesh_ct:stat(Pool, messages_dropped)
        end),
        ?assertMatch({ok, #{size := 0, dialing := 0}}, ?POOL:get_stats(Pool))
    end).

a_peer_is_found_by_its_name(_Config) ->
    %% `localhost' has an IPv6 address on many machines, on which this peer does not listen.
    mesh_ct:with(#{}, [[]], fun(Pool, [Peer]) ->
        Port = mesh_peer:port(Peer),
        Text = iolist_to_binary(io_lib:format("localhost:~b", [Port])),
        Addresses = [{"localhost", Port}, Text, <<"https://", Text/binary, "/x">>],
        lists:foreach(
            fun(Address) ->
                NodeId = term_to_binary(Address),
                {ok, Stream} = ?POOL:get_or_create_connection(Pool, NodeId, Address),
                ?assertEqual({ok, {{127, 0, 0, 1}, Port}}, macula_quic:peername(Stream))
            end,
            Addresses
        ),
        ?assertMatch(#{connections_open := 3}, mesh_peer:wait(Peer, connections_open, 3))
    end).

without_file_descriptors_what_needs_one_says_so_and_the_rest_goes_on(Config) ->
    %% Something else on the node leaks them. The operator has to see what is missing, what is open
    %% has to go on, and everything has to once there are some again.
    Base = filename:join(proplists:get_value(priv_dir, Config), "node"),
    Files = quic_certs:self_signed(Base),
    mesh_vm:with(fun(Vm) ->
        Port = mesh_vm:call(Vm, mesh_callers, listen, [0, Files, Base ++ ".log", #{}]),
        Former = quic_certs:spki(Base ++ ".pem"),
        Place = [{{127, 0, 0, 1}, 0}, der(Files)],
        Listen = fun() -> mesh_vm:call(Vm, macula_quic, listen, Place) end,
        Dial = fun() ->
            Target = [?POOL, <<"n">>, {{127, 0, 0, 1}, Port}],
            mesh_vm:call(Vm, get_or_create_connection, Target)
        end,
        Renew = fun() -> mesh_vm:call(Vm, mesh_callers, renew, []) end,
        ok = mesh_vm:call(Vm, start_pool, [#{}]),
        _ = quic_certs:self_signed(Base),
        ok = mesh_vm:limit_descriptors(Vm, 3),
        ?assertEqual({error, {connect_failed, {socket_error, emfile}}}, Dial()),
        ?assertEqual({error, {socket_error, emfile}}, Listen()),
        ?assertMatch({error, {bad_certificate, _, emfile}}, Renew()),
        ?assertEqual(ok, connects(Port, Former)),
        ok = mesh_vm:limit_descriptors(Vm, 1_024),
        ?assertMatch({ok, _}, Dial()),
        ?assertMatch({ok, _}, Listen()),
        ?assertEqual(ok, Renew()),
        ?assertEqual(ok, connects(Port, quic_certs:spki(Base ++ ".pem"))),
        ?assertEqual({error, {unverified, wrong_key}}, connects(Port, Former))
    end).

%%% Internal

%% A certificate and key for which no file has to be opened.
der({CertFile, KeyFile}) ->
    [{cert, quic_certs:der(CertFile)}, {key, quic_certs:key_der(KeyFile)}].

%% Whether the listener at this port has the key with this hash.
connects(Port, Hash) ->
    Pin = [{verify, {spki_sha256, Hash}}],
    case macula_quic:connect({127, 0, 0, 1}, Port, Pin, ?WAIT_MS) of
        {ok, Connection} -> macula_quic:close(Connection);
        {error, _} = Error -> Error
    end.

%% A pool's life under load in the other VM, with one victim at a random moment. No connection and
%% no task outlives it, nor does the first of the peers.
round_of(Victim, Vm, Options, [Mortal | Others]) ->
    Peers = [Mortal | Others],
    Targets = [
        {mesh_peer:node_id(N), mesh_peer:address(Peer)}
     || {N, Peer} <- lists:zip(lists:seq(1, 6), Peers ++ Peers)
    ],
    ok = mesh_vm:call(Vm, start_pool, [Options]),
    ok = mesh_vm:call(Vm, start_load, [Targets, 6]),
    random_moment(),
    ok = strike(Victim, Vm, Mortal),
    random_moment(),
    ok = mesh_vm:call(Vm, stop_load, []),
    ok = mesh_vm:call(Vm, stop_pool, []),
    mesh_load:await_peers(Others, connections_open, 0),
    [?assertMatch(#{closed_by_timeout := 0}, mesh_peer:stats(Peer)) || Peer <- Others],
    ok = end_peer(Victim, Mortal),
    ok = mesh_vm:call(Vm, start_pool, [Options]),
    mesh_load:eventually(0, fun() ->
        {ok, #{runtime_tasks := Tasks}} = mesh_vm:call(Vm, get_stats, [?POOL]),
        Tasks
    end),
    mesh_vm:call(Vm, stop_pool, []).

%% The claim is about any moment, so this one sleep is no wait for anything.
random_moment() -> timer:sleep(rand:uniform(150)).

strike(none, _Vm, _Peer) -> ok;
strike(server, Vm, _Peer) -> mesh_vm:call(Vm, kill_server, []);
strike(caller, Vm, _Peer) -> mesh_vm:call(Vm, kill_caller, []);
strike(peer, _Vm, Peer) -> mesh_peer:kill(Peer).

end_peer(peer, _Killed) -> ok;
end_peer(_Other, Peer) -> mesh_peer:stop(Peer).

%% Kills a peer, and starts another one on its port.
restart(Peer) ->
    ok = mesh_peer:kill(Peer),
    mesh_peer:start(["--port", integer_to_list(mesh_peer:port(Peer))]).

with_supervised(Options, Test) ->
    Peer = mesh_peer:start(),
    {ok, Supervisor} = supervisor:start_link(mesh_vm, Options),
    try
        Test(Supervisor, Peer)
    after
        unlink(Supervisor),
        Monitor = monitor(process, Supervisor),
        exit(Supervisor, shutdown),
        receive
            {'DOWN', Monitor, process, Supervisor, _} -> mesh_peer:stop(Peer)
        end
    end.

kill_and_await_successor(Server) ->
    exit(Server, kill),
    mesh_load:eventually(true, fun() ->
        Pid = whereis(?POOL),
        is_pid(Pid) andalso Pid =/= Server
    end),
    %% It is registered before it has a pool; once it answers, it has.
    0 = ?POOL:pool_size(?POOL),
    whereis(?POOL).

ends_under_load_with(Status, Word) ->
    Peers = [mesh_peer:start(), mesh_peer:start()],
    Ports = [mesh_peer:port(Peer) || Peer <- Peers],
    Statuses = [mesh_vm:exit_status(Word, Ports) || _ <- lists:seq(1, 10)],
    ?assertEqual(lists:duplicate(10, Status), Statuses),
    lists:foreach(fun mesh_peer:stop/1, Peers).
