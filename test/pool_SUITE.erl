%%% How the pool keeps its connections and lets go of them: what waits for one is bounded, the one
%%% of least use goes first, and its queue is drained for no longer than the pool was told. What
%%% happened to connections and messages is in the figures.
-module(pool_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(POOL, macula_gateway_mesh).
%% A dial that is still under way when the test has ended.
-define(LONG_MS, 60_000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        % Connections
        removing_drains_the_queue_and_closes,
        evicting_drains_the_queue_and_closes,
        a_peer_that_does_not_read_is_closed_after_the_linger_time,
        evicts_the_least_recently_used_connection,
        a_message_is_a_use,
        asking_for_info_is_no_use,
        evicts_an_idle_connection_before_an_older_busy_one,
        a_silent_connection_leaves_the_pool_after_the_idle_timeout,
        counts_every_dropped_message_by_cause,
        every_message_is_accounted_for_when_its_connection_is_lost,
        stopped_by_its_supervisor_it_sends_first_and_closes,
        stopping_waits_neither_for_a_peer_that_takes_nothing_nor_for_a_dial,
        % Figures
        has_every_figure_from_the_start,
        figures_tell_what_happened,
        a_socket_that_has_died_is_in_the_log,
        pool_size_counts_connections_and_not_dials,
        set_max_connections_evicts_what_is_too_much,
        set_max_connections_refuses_a_bad_limit
    ].

init_per_testcase(_Case, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Case, _Config) ->
    mesh_ct:end_test(),
    ok.

%%% Connections

removing_drains_the_queue_and_closes(_Config) ->
    % The original left the connection open for good; what was sent before must arrive.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{linger_ms => 20_000}),
    mesh_ct:connect(Pool, Peer),
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(Index, 2_000)) || Index <- lists:seq(0, 499)],
    ok = ?POOL:remove_connection(Pool, id(Peer)),
    assert_drained_and_closed(Peer, 500),
    mesh_wait:eventually(#{removed => 1}, fun() -> mesh_ct:stat(closes) end).

evicting_drains_the_queue_and_closes(_Config) ->
    % The same when somebody else needs the place.
    [Peer, Other] = [mesh_ct:start_peer() || _ <- [1, 2]],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 1, linger_ms => 20_000}),
    mesh_ct:connect(Pool, Peer),
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(Index, 2_000)) || Index <- lists:seq(0, 499)],
    mesh_ct:connect(Pool, Other),
    assert_drained_and_closed(Peer, 500),
    mesh_wait:eventually(#{evicted => 1}, fun() -> mesh_ct:stat(closes) end),
    ?assertEqual({1, 1}, {mesh_ct:stat(size), mesh_ct:stat(evictions)}).

a_peer_that_does_not_read_is_closed_after_the_linger_time(_Config) ->
    % It must not keep a connection that the pool has given away.
    Peer = mesh_ct:start_peer(["--mode", "slow:1000"]),
    Pool = mesh_ct:start_pool(#{linger_ms => 200}),
    mesh_ct:send(Pool, Peer, mesh_peer:frame(0, 1024 * 1024)),
    mesh_peer:wait(Peer, streams, 1),
    ok = ?POOL:remove_connection(Pool, id(Peer)),
    Stats = mesh_peer:wait(Peer, closed_by_peer, 1),
    ?assertMatch(#{messages := 0, corrupt := 0}, Stats),
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(messages_unconfirmed) end),
    ?assertEqual(0, mesh_ct:stat(outstanding_messages)).

evicts_the_least_recently_used_connection(_Config) ->
    % By the order of use, even within one second.
    [A, B, C, D] = [mesh_ct:start_peer() || _ <- lists:seq(1, 4)],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 3}),
    [mesh_ct:connect(Pool, Peer) || Peer <- [A, B, C, A, D]],
    mesh_peer:wait(B, closed_by_peer, 1),
    ?assertEqual([id(D), id(A), id(C)], mesh_ct:nodes(Pool)),
    ?assertMatch([0, 0, 0], [closed(Peer) || Peer <- [A, C, D]]),
    ?assertEqual({3, 1}, {mesh_ct:stat(size), mesh_ct:stat(evictions)}).

a_message_is_a_use(_Config) ->
    % A peer that is only sent to is in use, too.
    [A, B, C] = [mesh_ct:start_peer() || _ <- lists:seq(1, 3)],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 2}),
    [mesh_ct:connect(Pool, Peer) || Peer <- [A, B]],
    mesh_ct:send(Pool, A, <<"m">>),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(outstanding_messages) end),
    mesh_ct:connect(Pool, C),
    ?assertEqual([id(C), id(A)], mesh_ct:nodes(Pool)).

asking_for_info_is_no_use(_Config) ->
    % Monitoring must not decide who stays.
    [A, B, C] = [mesh_ct:start_peer() || _ <- lists:seq(1, 3)],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 2}),
    [mesh_ct:connect(Pool, Peer) || Peer <- [A, B]],
    {ok, _} = ?POOL:get_connection_info(Pool, id(A)),
    {ok, _} = ?POOL:list_connections(Pool),
    mesh_ct:connect(Pool, C),
    ?assertEqual([id(C), id(B)], mesh_ct:nodes(Pool)).

evicts_an_idle_connection_before_an_older_busy_one(_Config) ->
    % A transfer under way is worth more than a connection that nobody needs now.
    Busy = mesh_ct:start_peer(["--mode", "slow:1000"]),
    [Idle, New] = [mesh_ct:start_peer() || _ <- [1, 2]],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 2}),
    mesh_ct:send(Pool, Busy, mesh_peer:frame(0, 1024 * 1024)),
    mesh_peer:wait(Busy, streams, 1),
    [mesh_ct:connect(Pool, Peer) || Peer <- [Idle, New]],
    ?assertEqual([id(New), id(Busy)], mesh_ct:nodes(Pool)),
    mesh_peer:wait(Idle, closed_by_peer, 1),
    ?assertMatch({ok, #{state := busy}}, ?POOL:get_connection_info(Pool, id(Busy))),
    ?assertEqual(0, closed(Busy)).

a_silent_connection_leaves_the_pool_after_the_idle_timeout(_Config) ->
    % A peer without power says nothing.
    Peer = mesh_peer:start(),
    Pool = mesh_ct:start_pool(#{idle_timeout_ms => 600, keep_alive_interval_ms => 100}),
    Stream = mesh_ct:connect(Pool, Peer),
    mesh_peer:kill(Peer),
    mesh_wait:eventually(0, fun() -> ?POOL:pool_size(Pool) end),
    ?assertEqual({error, idle_timeout}, macula_quic:send(Stream, <<"m">>)),
    mesh_wait:eventually(#{idle_timeout => 1}, fun() -> mesh_ct:stat(closes) end).

counts_every_dropped_message_by_cause(_Config) ->
    % Fire and forget told nobody about losses.
    Refusing = mesh_ct:start_peer(["--mode", "refuse"]),
    Resetting = mesh_ct:start_peer(["--mode", "reset"]),
    Most = 4 * 1024 * 1024,
    Pool = mesh_ct:start_pool(#{queue_max_bytes => Most, queue_max_messages => 1}),
    mesh_ct:send(Pool, Refusing, <<"refused">>),
    % More than the peer takes unread, so that it is stopped half-way.
    mesh_ct:send(Pool, Resetting, binary:copy(<<0>>, Most)),
    ok = ?POOL:send_async(Pool, <<"a">>, nowhere, <<"bad_address">>),
    ok = ?POOL:send_async(Pool, <<"b">>, {"nosuchhost.invalid", 1}, <<"nxdomain">>),
    Silent = mesh_peer:silent(),
    ok = ?POOL:send_async(Pool, <<"c">>, Silent, <<"removed">>),
    ok = ?POOL:send_async(Pool, <<"c">>, Silent, <<"send_queue_full">>),
    ok = ?POOL:send_async(Pool, <<"c">>, Silent, binary:copy(<<0>>, Most + 1)),
    ok = ?POOL:remove_connection(Pool, <<"c">>),
    Expected = #{
        refused => 1,
        bad_address => 1,
        nxdomain => 1,
        removed => 1,
        send_queue_full => 1,
        message_too_large => 1
    },
    mesh_wait:eventually(Expected, fun() -> mesh_ct:stat(messages_dropped) end),
    % Something of the stopped one was sent.
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(messages_unconfirmed) end),
    ?assertEqual(Expected, mesh_ct:stat(messages_dropped)).

every_message_is_accounted_for_when_its_connection_is_lost(_Config) ->
    % Accepted is delivered, dropped, unconfirmed or outstanding: no fifth fate.
    Peer = mesh_ct:start_peer(["--mode", "close_after:10"]),
    Pool = mesh_ct:start_pool(),
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(I, 1_000)) || I <- lists:seq(0, 299)],
    % Nor is there a moment without one, when it goes from one connection to the next.
    mesh_wait:eventually(true, fun() ->
        {ok, Stats} = ?POOL:get_stats(Pool),
        #{messages_delivered := Delivered, messages_unconfirmed := Unconfirmed} = Stats,
        Told = Delivered + Unconfirmed + lists:sum(maps:values(maps:get(messages_dropped, Stats))),
        Outstanding = maps:get(outstanding_messages, Stats),
        ?assert(Told + Outstanding >= 300),
        Outstanding =:= 0 andalso Told =:= 300
    end),
    ?assertMatch(#{corrupt := 0, duplicates := 0}, mesh_peer:stats(Peer)).

stopped_by_its_supervisor_it_sends_first_and_closes(_Config) ->
    % At a node's shutdown the last messages count, and peers learn at once that it has gone.
    Peers = [mesh_ct:start_peer() || _ <- lists:seq(1, 3)],
    Supervisor = mesh_ct:start_supervised(#{linger_ms => 4_000}),
    [mesh_ct:connect(?POOL, Peer) || Peer <- Peers],
    [
        mesh_ct:send(?POOL, Peer, mesh_peer:frame(I, 1_000))
     || Peer <- Peers,
        I <- lists:seq(0, 99)
    ],
    ok = supervisor:terminate_child(Supervisor, ?POOL),
    [assert_drained_and_closed(Peer, 100) || Peer <- Peers],
    ?assertEqual(undefined, whereis(?POOL)).

stopping_waits_neither_for_a_peer_that_takes_nothing_nor_for_a_dial(_Config) ->
    % The supervisor would kill it after 5 seconds, with every connection. At 10 bytes a second the
    % message takes a day, and the dial longer than await/1 waits for the stop.
    Peer = mesh_ct:start_peer(["--mode", "slow:10"]),
    Pool = mesh_ct:start_pool(#{linger_ms => 300, connect_timeout_ms => ?LONG_MS}),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 1024 * 1024)),
    ok = ?POOL:send_async(Pool, <<"silent">>, mesh_peer:silent(), <<"m">>),
    mesh_peer:wait(Peer, streams, 1),
    ?assertEqual(ok, mesh_ct:await(mesh_ct:start_task(fun() -> ?POOL:stop(Pool) end))),
    Stats = mesh_peer:wait(Peer, closed_by_peer, 1),
    ?assertMatch(#{messages := 0, close_codes := #{0 := 1}}, Stats).

%%% Figures

has_every_figure_from_the_start(_Config) ->
    % Dashboards are built on the names; each is there before anything has happened.
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 9}),
    {ok, Stats} = ?POOL:get_stats(Pool),
    Zeros = [
        size, dialing, failing, tasks, hits, misses, dials, connections_opened, renewals, probes,
        suspicions, recoveries, evictions, removals, messages_accepted, bytes_accepted,
        messages_delivered, bytes_delivered, messages_unconfirmed, messages_redelivered,
        outstanding_messages, outstanding_bytes, stream_bytes, panics, udp_receive_buffer_bytes,
        udp_send_buffer_bytes
    ],
    Causes = [dial_failures, closes, messages_dropped],
    Expected = maps:from_list([{Key, 0} || Key <- Zeros] ++ [{Key, #{}} || Key <- Causes]),
    ?assertEqual(Expected#{limit => 9}, maps:remove(runtime_tasks, Stats)),
    ?assert(is_integer(maps:get(runtime_tasks, Stats))).

figures_tell_what_happened(_Config) ->
    % A figure that is made up is worse than none.
    [A, B] = [mesh_ct:start_peer() || _ <- [1, 2]],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 1}),
    mesh_ct:connect(Pool, A),
    Stream = mesh_ct:connect(Pool, A),
    [mesh_ct:send(Pool, A, <<"0123456789">>) || _ <- lists:seq(1, 3)],
    ok = macula_quic:send(Stream, <<"01234">>),
    mesh_peer:wait(A, messages, 4),
    mesh_wait:eventually(4, fun() -> mesh_ct:stat(messages_delivered) end),
    ?assert(mesh_ct:stat(tasks) >= 1),
    mesh_ct:connect(Pool, B),
    ok = ?POOL:remove_connection(Pool, id(B)),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(tasks) end),
    {ok, Stats} = ?POOL:get_stats(Pool),
    Expected = #{
        size => 0,
        limit => 1,
        dialing => 0,
        tasks => 0,
        hits => 1,
        misses => 2,
        dials => 2,
        dial_failures => #{},
        connections_opened => 2,
        renewals => 0,
        probes => 0,
        suspicions => 0,
        recoveries => 0,
        failing => 0,
        evictions => 1,
        removals => 1,
        closes => #{evicted => 1, removed => 1},
        messages_accepted => 4,
        bytes_accepted => 35,
        messages_delivered => 4,
        bytes_delivered => 35,
        messages_dropped => #{},
        messages_unconfirmed => 0,
        messages_redelivered => 0,
        outstanding_messages => 0,
        outstanding_bytes => 0,
        stream_bytes => 0,
        panics => 0
    },
    Others = [runtime_tasks, udp_receive_buffer_bytes, udp_send_buffer_bytes],
    ?assertEqual(Expected, maps:without(Others, Stats)),
    #{udp_receive_buffer_bytes := Receive, udp_send_buffer_bytes := Send} = Stats,
    % The socket is bound by now, and the kernel has granted something.
    ?assert(Receive > 0 andalso Send > 0).

a_socket_that_has_died_is_in_the_log(_Config) ->
    % Its connections have ended for no fault of their peers. The event is made here: the kernel
    % gives a socket that it takes from us another port, and the pool goes on with it.
    mesh_ct:start_logging(),
    Pool = mesh_ct:start_pool(),
    Pool ! {mesh_event, socket_lost},
    ?assertEqual(0, ?POOL:pool_size(Pool)),
    ?assertEqual(
        [{error, #{msg => "the UDP socket of the mesh pool has died and is bound anew"}}],
        mesh_ct:flush()
    ).

pool_size_counts_connections_and_not_dials(_Config) ->
    % Readiness checks ask for it.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS}),
    ?assertEqual(0, ?POOL:pool_size(Pool)),
    mesh_ct:connect(Pool, Peer),
    ok = ?POOL:send_async(Pool, <<"silent">>, mesh_peer:silent(), <<"m">>),
    ?assertEqual(1, ?POOL:pool_size(Pool)),
    ok = ?POOL:remove_connection(Pool, id(Peer)),
    ?assertEqual(0, ?POOL:pool_size(Pool)).

set_max_connections_evicts_what_is_too_much(_Config) ->
    % An operator who is short of memory must not have to restart the node.
    Peers = [A, B, C, D] = [mesh_ct:start_peer() || _ <- lists:seq(1, 4)],
    Pool = mesh_ct:start_pool(),
    [mesh_ct:connect(Pool, Peer) || Peer <- Peers],
    ?assertEqual(ok, ?POOL:set_max_connections(Pool, 2)),
    ?assertEqual([id(D), id(C)], mesh_ct:nodes(Pool)),
    [mesh_peer:wait(Peer, closed_by_peer, 1) || Peer <- [A, B]],
    ?assertEqual({2, 2}, {mesh_ct:stat(limit), mesh_ct:stat(evictions)}),
    mesh_ct:connect(Pool, A),
    ?assertEqual([id(A), id(D)], mesh_ct:nodes(Pool)),
    ?assertEqual(ok, ?POOL:set_max_connections(Pool, 3)),
    mesh_ct:connect(Pool, B),
    ?assertEqual([id(B), id(A), id(D)], mesh_ct:nodes(Pool)).

set_max_connections_refuses_a_bad_limit(_Config) ->
    % As at the start, and the pool goes on with what it had.
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 5}),
    [
        ?assertEqual(
            {error, {bad_option, max_mesh_connections, Limit}},
            ?POOL:set_max_connections(Pool, Limit)
        )
     || Limit <- [0, -1, 1_000_001, 1 bsl 70, 1.0, "5", <<"5">>, infinity, {}, [], #{}]
    ],
    ?assertEqual(5, mesh_ct:stat(limit)),
    [
        ?assertEqual(ok, ?POOL:set_max_connections(Pool, Limit))
     || Limit <- [1, 1_000_000]
    ],
    ?assertEqual(1_000_000, mesh_ct:stat(limit)).

%%% What the tests share

id(Peer) -> mesh_ct:node_id(Peer).

closed(Peer) -> maps:get(connections_closed, mesh_peer:stats(Peer)).

%% Every message arrived, whole and once, before the connection was closed without an error.
assert_drained_and_closed(Peer, Count) ->
    Stats = mesh_peer:wait(Peer, closed_by_peer, 1),
    ?assertMatch(#{distinct := Count, duplicates := 0, corrupt := 0}, Stats),
    ?assertMatch(#{streams_reset := 0, close_codes := #{0 := 1}}, Stats).
