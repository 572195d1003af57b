%%% Peers that die, stand still, restart or were never there: how the pool notices, and what becomes
%%% of their messages. Each ends a real process or closes a real port.
-module(liveness_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    a_closed_port_is_refused_at_once/1,
    a_peer_that_restarts_resets_the_connections_of_the_one_before_it/1,
    what_was_not_sent_to_a_peer_before_it_restarted_reaches_it_afterwards/1,
    a_peer_that_restarts_is_where_it_was_whatever_callers_say/1,
    messages_to_a_node_that_fails_do_not_dial_it_each/1,
    a_caller_may_dial_at_once_during_the_back_off/1,
    messages_wait_for_the_end_of_a_short_back_off/1,
    a_caller_ends_the_back_off_for_the_messages_that_wait/1,
    another_address_is_dialled_at_once_during_the_back_off/1,
    a_killed_peer_is_noticed_while_something_is_outstanding/1,
    what_was_not_sent_to_a_dead_peer_reaches_its_successor_over_a_fresh_connection/1,
    with_redelivery_what_was_on_its_way_to_a_dead_peer_is_sent_again/1,
    what_a_user_has_sent_on_a_stream_of_his_own_shows_that_a_peer_is_dead/1,
    a_user_whose_peer_does_not_read_does_not_lose_it/1,
    who_waits_for_a_message_to_a_killed_peer_is_told_that_it_may_have_arrived/1,
    a_peer_is_noticed_though_the_time_for_it_is_shorter_than_a_timer_is_late/1,
    a_peer_that_stands_still_for_a_moment_keeps_its_connection/1,
    an_idle_connection_whose_port_is_closed_for_good_leaves_the_pool/1,
    a_connection_outlives_a_moment_in_which_its_port_is_closed/1,
    a_slow_reader_is_never_taken_for_dead/1,
    an_idle_peer_is_never_suspected/1,
    a_rested_connection_is_checked_before_it_is_handed_out/1,
    a_rested_connection_to_a_dead_peer_is_replaced_before_it_is_handed_out/1,
    who_asks_for_a_silent_peer_at_another_address_reaches_it_there/1,
    messages_for_a_silent_peer_go_where_it_is_said_to_be/1,
    callers_who_disagree_where_a_silent_peer_is_reach_it/1,
    a_message_waits_until_a_rested_connection_has_been_checked/1,
    a_message_waits_for_a_peer_that_the_network_says_is_gone/1,
    a_message_waits_for_a_peer_that_the_network_says_is_gone_when_another_is_under_way/1,
    a_dial_that_its_connection_does_not_outlive_is_counted/1,
    without_an_ack_timeout_only_the_idle_timeout_tells/1,
    who_vanishes_is_noticed_long_before_the_idle_timeout/1,
    noticing_takes_as_long_as_is_printed/1,
    a_pool_that_stood_still_itself_suspects_nobody_for_that/1
]).

-define(POOL, macula_gateway_mesh).

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        a_closed_port_is_refused_at_once,
        a_peer_that_restarts_resets_the_connections_of_the_one_before_it,
        what_was_not_sent_to_a_peer_before_it_restarted_reaches_it_afterwards,
        a_peer_that_restarts_is_where_it_was_whatever_callers_say,
        messages_to_a_node_that_fails_do_not_dial_it_each,
        a_caller_may_dial_at_once_during_the_back_off,
        messages_wait_for_the_end_of_a_short_back_off,
        a_caller_ends_the_back_off_for_the_messages_that_wait,
        another_address_is_dialled_at_once_during_the_back_off,
        a_killed_peer_is_noticed_while_something_is_outstanding,
        what_was_not_sent_to_a_dead_peer_reaches_its_successor_over_a_fresh_connection,
        with_redelivery_what_was_on_its_way_to_a_dead_peer_is_sent_again,
        what_a_user_has_sent_on_a_stream_of_his_own_shows_that_a_peer_is_dead,
        a_user_whose_peer_does_not_read_does_not_lose_it,
        who_waits_for_a_message_to_a_killed_peer_is_told_that_it_may_have_arrived,
        a_peer_is_noticed_though_the_time_for_it_is_shorter_than_a_timer_is_late,
        a_peer_that_stands_still_for_a_moment_keeps_its_connection,
        an_idle_connection_whose_port_is_closed_for_good_leaves_the_pool,
        a_connection_outlives_a_moment_in_which_its_port_is_closed,
        a_slow_reader_is_never_taken_for_dead,
        an_idle_peer_is_never_suspected,
        a_rested_connection_is_checked_before_it_is_handed_out,
        a_rested_connection_to_a_dead_peer_is_replaced_before_it_is_handed_out,
        who_asks_for_a_silent_peer_at_another_address_reaches_it_there,
        messages_for_a_silent_peer_go_where_it_is_said_to_be,
        callers_who_disagree_where_a_silent_peer_is_reach_it,
        a_message_waits_until_a_rested_connection_has_been_checked,
        a_message_waits_for_a_peer_that_the_network_says_is_gone,
        a_message_waits_for_a_peer_that_the_network_says_is_gone_when_another_is_under_way,
        a_dial_that_its_connection_does_not_outlive_is_counted,
        without_an_ack_timeout_only_the_idle_timeout_tells,
        who_vanishes_is_noticed_long_before_the_idle_timeout,
        a_pool_that_stood_still_itself_suspects_nobody_for_that
    ].

init_per_suite(Config) ->
    Base = filename:join(proplists:get_value(priv_dir, Config), "node"),
    [{certificate, quic_certs:self_signed(Base)} | Config].

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> mesh_ct:end_test().

a_closed_port_is_refused_at_once(_Config) ->
    %% A node that is down while its machine is up need not cost every caller the whole time-out,
    %% which is a minute here.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => 60_000}),
    lists:foreach(
        fun(Ip) ->
            Port = mesh_ct:closed_port(Ip),
            NodeId = term_to_binary(Ip),
            ?assertEqual(
                {error, {connect_failed, refused}},
                ?POOL:get_or_create_connection(Pool, NodeId, {Ip, Port})
            ),
            ?assertEqual({error, refused}, macula_quic:connect(Ip, Port, [], 60_000))
        end,
        [{127, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 1}]
    ),
    ?assertEqual(#{refused => 2}, mesh_ct:stat(dial_failures)).

a_peer_that_restarts_resets_the_connections_of_the_one_before_it(Config) ->
    %% A node that is restarted after a crash should get its messages at once, and not when the
    %% connections to its predecessor have run out of patience: here that takes a minute.
    Pool = mesh_ct:start_pool(#{idle_timeout_ms => 60_000}),
    {Vm, First} = start_node(Config, 0),
    Address = {{127, 0, 0, 1}, mesh_vm:call(Vm, old_node, port, [First])},
    {ok, Old} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = macula_quic:send(Old, mesh_peer:frame(1, 8)),
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(messages_delivered) end),
    ok = mesh_vm:kill(Vm),
    {Successor, Node} = start_node(Config, element(2, Address)),
    %% The question of the pool that the successor cannot understand.
    ok = macula_quic:send(Old, mesh_peer:frame(2, 8)),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(tasks) end),
    ?assertEqual(#{reset => 1}, mesh_ct:stat(closes)),
    ?assertEqual({error, reset}, macula_quic:send(Old, <<"late">>)),
    ok = ?POOL:send_async(Pool, <<"node">>, Address, mesh_peer:frame(3, 8)),
    mesh_wait:eventually(1, fun() -> notified(Successor, Node) end),
    mesh_wait:eventually(2, fun() -> mesh_ct:stat(messages_delivered) end),
    ?assertEqual(1, mesh_ct:stat(messages_unconfirmed)),
    ok = peer:stop(Successor).

what_was_not_sent_to_a_peer_before_it_restarted_reaches_it_afterwards(Config) ->
    %% The first message has used up what the peer takes unread, and may have arrived when it dies.
    %% Of those that wait behind it, in line or on streams of their own, nothing was sent, and none
    %% need be lost with the connection, which is reset.
    Pool = mesh_ct:start_pool(#{idle_timeout_ms => 60_000, ack_timeout_ms => 60_000}),
    Window = [{receive_window_bytes, 65_536}],
    {Vm, First} = start_node(Config, 0, Window),
    Address = {{127, 0, 0, 1}, mesh_vm:call(Vm, old_node, port, [First])},
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = mesh_vm:pause(Vm),
    Send = fun(N) -> ok = macula_quic:send(Stream, mesh_peer:frame(N, 200_000)) end,
    Send(1),
    Second = mesh_ct:start_task(fun() ->
        ?POOL:send(Pool, <<"node">>, Address, mesh_peer:frame(2, 200_000), 60_000)
    end),
    mesh_wait:eventually(2, fun() -> mesh_ct:stat(outstanding_messages) end),
    lists:foreach(Send, lists:seq(3, 8)),
    ok = mesh_vm:kill(Vm),
    {Successor, Node} = start_node(Config, element(2, Address), Window),
    mesh_wait:eventually(7, fun() -> notified(Successor, Node) end),
    ?assertEqual(ok, mesh_ct:await(Second)),
    ?assertMatch(
        #{messages_delivered := 7, messages_unconfirmed := 1, closes := #{reset := 1}},
        mesh_load:assert_accounted(Pool, 8)
    ),
    ?assertEqual([], mesh_vm:call(Successor, old_node, twice, [Node])),
    ?assertEqual(0, mesh_ct:stat(suspicions)),
    ok = peer:stop(Successor).

a_peer_that_restarts_is_where_it_was_whatever_callers_say(Config) ->
    %% A caller with an old table gives another address while the peer is not heard of. The peer's
    %% reset says where it is.
    Pool = mesh_ct:start_pool(#{probe_after_ms => 1, keep_alive_interval_ms => 0}),
    {Vm, First} = start_node(Config, 0),
    Address = {{127, 0, 0, 1}, mesh_vm:call(Vm, old_node, port, [First])},
    {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = mesh_vm:kill(Vm),
    {Successor, Node} = start_node(Config, element(2, Address)),
    Nowhere = {{127, 0, 0, 1}, mesh_ct:closed_port({127, 0, 0, 1})},
    Frame = mesh_peer:frame(1, 8),
    ?assertEqual(ok, ?POOL:send(Pool, <<"node">>, Nowhere, Frame, 60_000)),
    ?assertEqual({#{reset => 1}, #{}}, {mesh_ct:stat(closes), mesh_ct:stat(dial_failures)}),
    mesh_wait:eventually(1, fun() -> notified(Successor, Node) end),
    ok = peer:stop(Successor).

messages_to_a_node_that_fails_do_not_dial_it_each(_Config) ->
    %% A flood of messages to a node that is down must not become a flood of handshakes. This
    %% back-off is longer than a dial may take, so that no message waits for its end.
    Pool = start_pool_that_backs_off(60_000),
    Port = mesh_ct:closed_port({127, 0, 0, 1}),
    Address = {{127, 0, 0, 1}, Port},
    ok = ?POOL:send_async(Pool, <<"node">>, Address, <<"refused">>),
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(failing) end),
    %% However its callers write the address.
    Other = <<"127.0.0.1:", (integer_to_binary(Port))/binary>>,
    [
        ok = ?POOL:send_async(Pool, <<"node">>, Written, <<"dropped">>)
     || _ <- lists:seq(1, 500), Written <- [Address, Other]
    ],
    mesh_wait:eventually(#{refused => 1, backing_off => 1_000}, fun() ->
        mesh_ct:stat(messages_dropped)
    end),
    ?assertEqual(1, mesh_ct:stat(dials)).

a_caller_may_dial_at_once_during_the_back_off(_Config) ->
    %% Whoever asks waits for the answer; and the first success is the end of the back-off.
    Pool = start_pool_that_backs_off(60_000),
    Port = mesh_ct:closed_port({127, 0, 0, 1}),
    Address = {{127, 0, 0, 1}, Port},
    Refused = {error, {connect_failed, refused}},
    ?assertEqual(Refused, ?POOL:get_or_create_connection(Pool, <<"node">>, Address)),
    ?assertEqual(Refused, ?POOL:get_or_create_connection(Pool, <<"node">>, Address)),
    ?assertEqual(Refused, ?POOL:send(Pool, <<"node">>, Address, <<"confirmed">>, 10_000)),
    ?assertEqual({3, 1}, {mesh_ct:stat(dials), mesh_ct:stat(failing)}),
    Peer = mesh_ct:start_peer(["--port", integer_to_list(Port)]),
    {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ?assertEqual(0, mesh_ct:stat(failing)),
    ok = ?POOL:remove_connection(Pool, <<"node">>),
    ok = ?POOL:send_async(Pool, <<"node">>, Address, mesh_peer:frame(0, 8)),
    ?assertMatch(#{distinct := 1}, mesh_peer:wait(Peer, messages, 1)).

messages_wait_for_the_end_of_a_short_back_off(_Config) ->
    %% A node that is restarted is back in seconds, and what was sent meanwhile need not be lost.
    %% Nobody else asks for it: the back-off, of one and a half to three seconds, ends by itself.
    Pool = start_pool_that_backs_off(3_000, #{connect_timeout_ms => 60_000}),
    Peer = mesh_ct:start_peer(),
    {Relay, Port} = start_relay(mesh_peer:port(Peer)),
    Address = {{127, 0, 0, 1}, Port},
    ok = tell_relay(Relay, close),
    Begin = erlang:monotonic_time(millisecond),
    {error, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = tell_relay(Relay, open),
    Frames = [mesh_peer:frame(N, 8) || N <- lists:seq(0, 9)],
    [ok = ?POOL:send_async(Pool, <<"node">>, Address, Frame) || Frame <- Frames],
    ?assertMatch(#{distinct := 10, duplicates := 0}, mesh_peer:wait(Peer, messages, 10)),
    ?assert(erlang:monotonic_time(millisecond) - Begin >= 1_500),
    ?assertEqual({2, 0}, {mesh_ct:stat(dials), mesh_ct:stat(failing)}),
    ?assertEqual(#{}, mesh_ct:stat(messages_dropped)).

a_caller_ends_the_back_off_for_the_messages_that_wait(_Config) ->
    %% Who asks for the connection dials at once, and messages need not wait any longer either: here
    %% that would be for half a minute.
    Pool = start_pool_that_backs_off(30_000, #{connect_timeout_ms => 60_000}),
    Port = mesh_ct:closed_port({127, 0, 0, 1}),
    Address = {{127, 0, 0, 1}, Port},
    {error, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    Frames = [mesh_peer:frame(N, 8) || N <- lists:seq(0, 9)],
    [ok = ?POOL:send_async(Pool, <<"node">>, Address, Frame) || Frame <- Frames],
    ?assertMatch({10, 1}, {mesh_ct:stat(outstanding_messages), mesh_ct:stat(dialing)}),
    ?assertEqual(1, mesh_ct:stat(dials)),
    Peer = mesh_ct:start_peer(["--port", integer_to_list(Port)]),
    {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ?assertMatch(#{distinct := 10}, mesh_peer:wait(Peer, messages, 10)),
    ?assertEqual(#{}, mesh_ct:stat(messages_dropped)).

another_address_is_dialled_at_once_during_the_back_off(_Config) ->
    %% The routing table has learned where the node is now.
    Pool = start_pool_that_backs_off(60_000),
    {error, _} = ?POOL:get_or_create_connection(
        Pool, <<"node">>, {{127, 0, 0, 1}, mesh_ct:closed_port({127, 0, 0, 1})}
    ),
    Peer = mesh_ct:start_peer(),
    ok = ?POOL:send_async(Pool, <<"node">>, mesh_peer:address(Peer), mesh_peer:frame(0, 8)),
    ?assertMatch(#{distinct := 1}, mesh_peer:wait(Peer, messages, 1)).

a_killed_peer_is_noticed_while_something_is_outstanding(_Config) ->
    %% QUIC alone takes its idle timeout for that, here a minute. The port is closed, so the dial
    %% that is to replace the connection has its outcome at once.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 200}),
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = kill_when_sent(Pool, Peer, fun(Frame) -> macula_quic:send(Stream, Frame) end),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(tasks) end),
    ?assertEqual(#{dead => 1}, mesh_ct:stat(closes)),
    ?assertEqual({error, {dead, ack_timeout}}, macula_quic:send(Stream, <<"late">>)),
    ?assertEqual(1, mesh_ct:stat(messages_unconfirmed)),
    ?assertMatch({1, 0}, {mesh_ct:stat(suspicions), mesh_ct:stat(recoveries)}),
    ?assertEqual(#{refused => 1}, mesh_ct:stat(dial_failures)).

what_was_not_sent_to_a_dead_peer_reaches_its_successor_over_a_fresh_connection(_Config) ->
    %% Exactly as many messages as it gave stream credits are on their way when the peer dies. They
    %% may have arrived, and are not repeated; none of the others need be lost. Its successor has
    %% another key, so it cannot tell that it is one.
    {Pool, Address, Stream, Successor} = replace_a_peer_with_a_hundred_streams(#{}),
    ?assertMatch(
        #{messages := 400, distinct := 400, duplicates := 0},
        mesh_peer:wait(Successor, messages, 400)
    ),
    ?assertMatch(
        #{messages_accepted := 500, messages_delivered := 400, messages_unconfirmed := 100},
        mesh_load:assert_accounted(Pool, 500)
    ),
    mesh_wait:eventually(1, fun suspected/0),
    ?assertEqual({1, #{dead => 1}}, {mesh_ct:stat(size), mesh_ct:stat(closes)}),
    %% Whoever holds the stream need not know.
    ok = macula_quic:send(Stream, mesh_peer:frame(500, 8)),
    ?assertEqual({ok, Stream}, ?POOL:get_or_create_connection(Pool, <<"node">>, Address)),
    ?assertMatch(#{distinct := 401}, mesh_peer:wait(Successor, messages, 401)).

with_redelivery_what_was_on_its_way_to_a_dead_peer_is_sent_again(_Config) ->
    %% As above, for those who would rather have a message twice than not at all.
    {Pool, _Address, _Stream, Successor} =
        replace_a_peer_with_a_hundred_streams(#{redelivery => at_least_once}),
    ?assertMatch(#{distinct := 500}, mesh_peer:wait(Successor, messages, 500)),
    ?assertMatch(
        #{messages_delivered := 500, messages_unconfirmed := 0, messages_redelivered := 100},
        mesh_load:assert_accounted(Pool, 500)
    ).

what_a_user_has_sent_on_a_stream_of_his_own_shows_that_a_peer_is_dead(_Config) ->
    %% No message is outstanding, and no keep-alive would show it: only his bytes wait for an
    %% answer. His stream is lost, and he is told why.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 300, connect_timeout_ms => 3_000, keep_alive_interval_ms => 0
    }),
    Peer = mesh_ct:start_peer(["--mode", "echo", "--keep-alive-ms", "0"]),
    Stream = mesh_ct:open_stream(Pool, Peer),
    ok = macula_quic:send(Stream, <<"here">>),
    ?assertEqual({ok, <<"here">>}, macula_quic:recv(Stream, 20_000)),
    ok = mesh_peer:pause(Peer),
    ok = macula_quic:send(Stream, <<"there">>),
    ?assertEqual({error, {dead, ack_timeout}}, macula_quic:recv(Stream, 20_000)),
    mesh_wait:eventually({error, {dead, ack_timeout}}, fun() -> macula_quic:send(Stream, <<>>) end),
    ?assertEqual({1, #{dead => 1}}, {suspected(), mesh_ct:stat(closes)}).

a_user_whose_peer_does_not_read_does_not_lose_it(_Config) ->
    %% He waits for room, and the peer owes him no more than an acknowledgement: it is asked again
    %% and again, and answers. A machine that had no time for it does not make it dead.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 1_000, queue_max_bytes => 4_000_000}),
    Peer = mesh_ct:start_peer(["--mode", "silent_streams"]),
    Stream = mesh_ct:open_stream(Pool, Peer),
    ok = macula_quic:send(Stream, binary:copy(<<0>>, 4_000_000)),
    mesh_wait:eventually(true, fun() -> mesh_ct:stat(probes) >= 3 end),
    ?assertEqual(mesh_ct:stat(suspicions), mesh_ct:stat(recoveries)),
    ?assertEqual(#{}, mesh_ct:stat(closes)).

who_waits_for_a_message_to_a_killed_peer_is_told_that_it_may_have_arrived(_Config) ->
    %% It need not wait for its own time-out, and knows not to expect anything more.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 200}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    {NodeId, Address} = {mesh_ct:node_id(Peer), mesh_peer:address(Peer)},
    Sending = kill_when_sent(Pool, Peer, fun(Frame) ->
        mesh_ct:start_task(fun() -> ?POOL:send(Pool, NodeId, Address, Frame, 60_000) end)
    end),
    ?assertEqual({error, {unconfirmed, {dead, ack_timeout}}}, mesh_ct:await(Sending)).

a_peer_is_noticed_though_the_time_for_it_is_shorter_than_a_timer_is_late(_Config) ->
    %% Whose timer goes off late takes the silence for his own; no timer is as punctual as that.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 2, connect_timeout_ms => 200}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:pause(Peer),
    ?assertEqual(
        {error, {unconfirmed, {dead, ack_timeout}}},
        ?POOL:send(Pool, mesh_ct:node_id(Peer), mesh_peer:address(Peer), <<"message">>, 20_000)
    ).

a_peer_that_stands_still_for_a_moment_keeps_its_connection(_Config) ->
    %% Collecting garbage, a debugger, a busy machine: suspicion is no death sentence.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 1_000, connect_timeout_ms => 60_000}),
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(messages_delivered) end),
    ok = mesh_peer:pause(Peer),
    Before = mesh_ct:stat(suspicions),
    [ok = macula_quic:send(Stream, mesh_peer:frame(N, 8)) || N <- lists:seq(1, 9)],
    mesh_wait:eventually(true, fun() -> mesh_ct:stat(suspicions) > Before end),
    %% Kept back, as long as it is not known who will take it.
    ok = macula_quic:send(Stream, mesh_peer:frame(10, 8)),
    ok = mesh_peer:resume(Peer),
    mesh_wait:eventually(11, fun() -> mesh_ct:stat(messages_delivered) end),
    ?assertMatch(#{distinct := 11, duplicates := 0}, mesh_peer:stats(Peer)),
    mesh_wait:eventually(0, fun suspected/0),
    ?assertEqual(#{}, mesh_ct:stat(closes)),
    ?assertEqual({0, 1}, {mesh_ct:stat(messages_unconfirmed), mesh_ct:stat(connections_opened)}),
    ?assertEqual(Stream, mesh_ct:connect(Pool, Peer)).

an_idle_connection_whose_port_is_closed_for_good_leaves_the_pool(_Config) ->
    %% The network answers its keep-alives. That is no proof, but reason enough to ask.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 300, probe_after_ms => 0, keep_alive_interval_ms => 100
    }),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:kill(Peer),
    mesh_wait:eventually(#{dead => 1}, fun() -> mesh_ct:stat(closes) end),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(size) end).

a_connection_outlives_a_moment_in_which_its_port_is_closed(_Config) ->
    %% Anybody on the way can make the network say that nobody is there, for as long as he likes.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 10_000, probe_after_ms => 0, keep_alive_interval_ms => 50
    }),
    Peer = mesh_ct:start_peer(),
    {Relay, Port} = start_relay(mesh_peer:port(Peer)),
    Address = {{127, 0, 0, 1}, Port},
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(messages_delivered) end),
    ok = tell_relay(Relay, close),
    mesh_wait:eventually(true, fun() -> mesh_ct:stat(probes) > 0 end),
    ok = tell_relay(Relay, open),
    ok = macula_quic:send(Stream, mesh_peer:frame(1, 8)),
    mesh_wait:eventually(2, fun() -> mesh_ct:stat(messages_delivered) end),
    ?assertEqual({#{}, 1}, {mesh_ct:stat(closes), mesh_ct:stat(connections_opened)}),
    ?assertEqual(0, mesh_ct:stat(suspicions)).

a_slow_reader_is_never_taken_for_dead(_Config) ->
    %% Its transport answers; its application takes its time, many times as much as we wait for an
    %% answer. Were it taken for dead, it would get everything twice, or never.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 1_000}),
    Peer = mesh_ct:start_peer(["--mode", "slow:40000"]),
    Stream = mesh_ct:connect(Pool, Peer),
    [ok = macula_quic:send(Stream, mesh_peer:frame(N, 20_000)) || N <- lists:seq(0, 9)],
    ?assertMatch(#{distinct := 10, duplicates := 0}, mesh_peer:wait(Peer, messages, 10)),
    mesh_wait:eventually(10, fun() -> mesh_ct:stat(messages_delivered) end),
    ?assertEqual({#{}, 0}, {mesh_ct:stat(closes), mesh_ct:stat(messages_unconfirmed)}),
    %% A machine that stands still for a second may have us suspect anybody, but not for long.
    ?assertEqual(mesh_ct:stat(recoveries), mesh_ct:stat(suspicions)).

an_idle_peer_is_never_suspected(_Config) ->
    %% Who has nothing to answer is silent. The wait of ten times our patience is the claim itself.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 100, probe_after_ms => 0}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    {timeout, _} = mesh_peer:command(Peer, "wait connections_closed 1 1000"),
    ?assertMatch({0, 0}, {mesh_ct:stat(probes), mesh_ct:stat(suspicions)}),
    ?assertEqual(#{}, mesh_ct:stat(closes)).

a_rested_connection_is_checked_before_it_is_handed_out(_Config) ->
    %% A connection that nobody has used for long may have died unnoticed.
    Pool = mesh_ct:start_pool(#{probe_after_ms => 100, keep_alive_interval_ms => 0}),
    Peer = mesh_ct:start_peer(["--keep-alive-ms", "0"]),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = use_until_probed(Pool, Peer, Stream),
    ?assertMatch({0, 1}, {mesh_ct:stat(suspicions), mesh_ct:stat(connections_opened)}).

a_rested_connection_to_a_dead_peer_is_replaced_before_it_is_handed_out(_Config) ->
    %% The caller gets a connection that works, and nothing is lost.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 1_000, probe_after_ms => 100, keep_alive_interval_ms => 0
    }),
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:kill(Peer),
    Successor = mesh_ct:start_peer(["--port", integer_to_list(mesh_peer:port(Peer))]),
    mesh_wait:eventually(true, fun() ->
        ?assertEqual(Stream, mesh_ct:connect(Pool, Peer)),
        mesh_ct:stat(closes) =:= #{dead => 1}
    end),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
    ?assertMatch(#{distinct := 1}, mesh_peer:wait(Successor, messages, 1)),
    ?assertEqual({#{dead => 1}, 0}, {mesh_ct:stat(closes), mesh_ct:stat(messages_unconfirmed)}).

who_asks_for_a_silent_peer_at_another_address_reaches_it_there(_Config) ->
    %% Its host has vanished, and the routing table has learned where it is now. A dial of where it
    %% was would have no outcome for a minute.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 300, probe_after_ms => 100, connect_timeout_ms => 60_000
    }),
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:pause(Peer),
    Successor = mesh_ct:start_peer(),
    {NodeId, Address} = {mesh_ct:node_id(Peer), mesh_peer:address(Successor)},
    mesh_wait:eventually(Address, fun() ->
        ?assertEqual({ok, Stream}, ?POOL:get_or_create_connection(Pool, NodeId, Address)),
        {ok, #{address := Known}} = ?POOL:get_connection_info(Pool, NodeId),
        Known
    end),
    ?assertEqual({ok, Address}, macula_quic:peername(Stream)),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
    ?assertMatch(#{distinct := 1}, mesh_peer:wait(Successor, messages, 1)),
    %% The first dial, and one for each suspicion.
    mesh_wait:eventually({1, 1}, fun() ->
        {suspected(), mesh_ct:stat(dials) - mesh_ct:stat(suspicions)}
    end),
    ?assertEqual(#{dead => 1}, mesh_ct:stat(closes)).

messages_for_a_silent_peer_go_where_it_is_said_to_be(_Config) ->
    %% The same for who only sends, also when the dial of where it was is under way.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 300, connect_timeout_ms => 60_000}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:pause(Peer),
    ok = mesh_ct:send(Pool, Peer, mesh_peer:frame(0, 8)),
    mesh_wait:eventually({1, 1}, fun() ->
        {suspected(), mesh_ct:stat(dials) - mesh_ct:stat(suspicions)}
    end),
    Successor = mesh_ct:start_peer(),
    {NodeId, Address} = {mesh_ct:node_id(Peer), mesh_peer:address(Successor)},
    [
        ok = ?POOL:send_async(Pool, NodeId, Address, mesh_peer:frame(N, 8))
     || N <- lists:seq(1, 10)
    ],
    ?assertMatch(#{distinct := 10, duplicates := 0}, mesh_peer:wait(Successor, messages, 10)),
    ?assertMatch(
        #{messages_delivered := 10, messages_unconfirmed := 1},
        mesh_load:assert_accounted(Pool, 11)
    ),
    %% Dialled were the peer at first, and the successor where another dial was given up for it.
    mesh_wait:eventually({1, 2, #{cancelled => 0}}, fun() ->
        {ok, #{suspicions := Suspicions} = Stats} = ?POOL:get_stats(Pool),
        #{recoveries := Recoveries, dials := Dials, dial_failures := Failures} = Stats,
        Beyond = fun(_Cause, Count) -> Count - Suspicions end,
        {Suspicions - Recoveries, Dials - Suspicions, maps:map(Beyond, Failures)}
    end).

callers_who_disagree_where_a_silent_peer_is_reach_it(_Config) ->
    %% One has an old table, and nothing is at his address. A dial of where the peer was would have
    %% no outcome for a minute.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 300, connect_timeout_ms => 60_000}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:pause(Peer),
    ok = mesh_ct:send(Pool, Peer, mesh_peer:frame(0, 8)),
    mesh_wait:eventually(1, fun() -> suspected() end),
    Successor = mesh_ct:start_peer(),
    Nowhere = {{127, 0, 0, 1}, mesh_ct:closed_port({127, 0, 0, 1})},
    [
        ok = ?POOL:send_async(Pool, mesh_ct:node_id(Peer), Address, mesh_peer:frame(N, 8))
     || {N, Address} <- [{1, mesh_peer:address(Successor)}, {2, Nowhere}]
    ],
    ?assertMatch(#{distinct := 2}, mesh_peer:wait(Successor, messages, 2)).

a_message_waits_until_a_rested_connection_has_been_checked(_Config) ->
    %% What was sent into the void is lost, or at least not known to have arrived; what waits is
    %% neither.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 1_000, probe_after_ms => 1, keep_alive_interval_ms => 0
    }),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:kill(Peer),
    Successor = mesh_ct:start_peer(["--port", integer_to_list(mesh_peer:port(Peer))]),
    %% A successor may be there within the millisecond in which the peer was heard of last.
    Rested = erlang:monotonic_time(millisecond) + 100,
    mesh_wait:eventually(true, fun() -> erlang:monotonic_time(millisecond) > Rested end),
    [ok = mesh_ct:send(Pool, Peer, mesh_peer:frame(N, 8)) || N <- lists:seq(0, 99)],
    ?assertMatch(#{distinct := 100}, mesh_peer:wait(Successor, messages, 100)),
    ?assertEqual({#{dead => 1}, 0}, {mesh_ct:stat(closes), mesh_ct:stat(messages_unconfirmed)}).

a_message_waits_for_a_peer_that_the_network_says_is_gone(_Config) ->
    %% The same, where the connection has not rested for long, and a packet of its own has just been
    %% answered by the network.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 3_000, keep_alive_interval_ms => 50}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:kill(Peer),
    mesh_wait:eventually(true, fun() -> mesh_ct:stat(probes) >= 1 end),
    %% In well below the three seconds until the pool dials it.
    Successor = mesh_ct:start_peer(["--port", integer_to_list(mesh_peer:port(Peer))]),
    [ok = mesh_ct:send(Pool, Peer, mesh_peer:frame(N, 8)) || N <- lists:seq(0, 99)],
    ?assertMatch(#{distinct := 100}, mesh_peer:wait(Successor, messages, 100)),
    ?assertEqual({#{dead => 1}, 0}, {mesh_ct:stat(closes), mesh_ct:stat(messages_unconfirmed)}).

a_message_waits_for_a_peer_that_the_network_says_is_gone_when_another_is_under_way(_Config) ->
    %% It is the packet of the first message that the network answers, long before the pool would
    %% have noticed the silence. What comes after it need not go the same way.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 20_000}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    ok = kill_when_sent(Pool, Peer, fun(Frame) -> mesh_ct:send(Pool, Peer, Frame) end),
    mesh_wait:eventually(true, fun() -> mesh_ct:stat(probes) >= 1 end, 5_000),
    Frames = [mesh_peer:frame(N, 8) || N <- lists:seq(1, 100)],
    [ok = mesh_ct:send(Pool, Peer, Frame) || Frame <- Frames],
    Successor = mesh_ct:start_peer(["--port", integer_to_list(mesh_peer:port(Peer))]),
    ?assertMatch(#{distinct := 100}, mesh_peer:wait(Successor, messages, 100)),
    ?assertMatch(
        #{messages_delivered := 100, messages_unconfirmed := 1},
        mesh_load:assert_accounted(Pool, 101)
    ).

a_dial_that_its_connection_does_not_outlive_is_counted(_Config) ->
    %% Dials and what became of them must add up, or an operator looks for those that are missing.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 200, connect_timeout_ms => 60_000, linger_ms => 100
    }),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    mesh_peer:pause(Peer),
    ok = mesh_ct:send(Pool, Peer, mesh_peer:frame(0, 8)),
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(suspicions) end),
    ok = ?POOL:remove_connection(Pool, mesh_ct:node_id(Peer)),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(tasks) end),
    ?assertEqual({2, 1}, {mesh_ct:stat(dials), mesh_ct:stat(connections_opened)}),
    ?assertEqual(#{cancelled => 1}, mesh_ct:stat(dial_failures)).

without_an_ack_timeout_only_the_idle_timeout_tells(_Config) ->
    %% Who asks for it gets what QUIC does by itself.
    Pool = mesh_ct:start_pool(#{
        ack_timeout_ms => 0, idle_timeout_ms => 1_000, keep_alive_interval_ms => 300
    }),
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:kill(Peer),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
    mesh_wait:eventually(#{idle_timeout => 1}, fun() -> mesh_ct:stat(closes) end),
    ?assertMatch({0, 0}, {mesh_ct:stat(probes), mesh_ct:stat(suspicions)}).

who_vanishes_is_noticed_long_before_the_idle_timeout(Config) ->
    %% The table of docs/operations.md. The pool tells by what it has noticed; the idle timeout is
    %% longer than eventually/2 waits.
    _ = notice(Config, #{
        ack_timeout_ms => 1_000, connect_timeout_ms => 2_000, idle_timeout_ms => 60_000
    }).

noticing_takes_as_long_as_is_printed(Config) ->
    %% The figures of docs/operations.md, with the defaults. Those take long: all/0 has the same
    %% with shorter times.
    ct:pal("milliseconds until noticed: ~p", [notice(Config, #{})]).

a_pool_that_stood_still_itself_suspects_nobody_for_that(_Config) ->
    %% A machine that slept has heard nothing because it slept; were its peers dead to it then, it
    %% would drop every connection, and dial them all at once. It stands still for longer than its
    %% patience of three seconds, which is the claim, while a peer owes it an answer.
    Peer = mesh_ct:start_peer(["--idle-timeout-ms", "60000"]),
    mesh_vm:with(fun(Vm) ->
        ok = mesh_vm:call(Vm, start_pool, [#{idle_timeout_ms => 60_000}]),
        Stat = fun(Key) -> maps:get(Key, element(2, mesh_vm:call(Vm, get_stats, [?POOL]))) end,
        Target = [?POOL, <<"node">>, mesh_peer:address(Peer)],
        {ok, _} = mesh_vm:call(Vm, get_or_create_connection, Target),
        ok = mesh_peer:pause(Peer),
        ok = mesh_vm:call(Vm, send_async, Target ++ [mesh_peer:frame(0, 8)]),
        ?assertEqual({1, 0}, {Stat(outstanding_messages), Stat(probes)}),
        ok = mesh_vm:pause(Vm),
        timer:sleep(5_000),
        ok = mesh_vm:resume(Vm),
        %% It is awake, and has asked anew.
        mesh_wait:eventually(true, fun() -> Stat(probes) > 0 end),
        ok = mesh_peer:resume(Peer),
        mesh_wait:eventually(1, fun() -> Stat(messages_delivered) end),
        ?assertEqual({0, #{}}, {Stat(suspicions), Stat(closes)}),
        ?assertEqual({1, 0}, {Stat(connections_opened), Stat(messages_unconfirmed)})
    end),
    ?assertMatch(#{distinct := 1, duplicates := 0}, mesh_peer:stats(Peer)).

%%% Internal

%% Ends peers in each way there is; how long each took to be noticed, in milliseconds.
notice(Config, Options) ->
    Pool = mesh_ct:start_pool(Options#{probe_after_ms => 100}),
    Refused = {{127, 0, 0, 1}, mesh_ct:closed_port({127, 0, 0, 1})},
    Closed = ms(fun() -> {error, _} = ?POOL:get_or_create_connection(Pool, <<"r">>, Refused) end),
    ?assertEqual(#{refused => 1}, mesh_ct:stat(dial_failures)),
    Rested = mesh_ct:start_peer(["--keep-alive-ms", "0"]),
    Stream = mesh_ct:connect(Pool, Rested),
    mesh_wait:eventually(true, fun() ->
        Ms = ms(fun() -> Stream = mesh_ct:connect(Pool, Rested) end),
        IsChecked = mesh_ct:stat(probes) > 0,
        IsChecked andalso (self() ! {checked, Ms}),
        IsChecked
    end),
    Check =
        receive
            {checked, Last} -> Last
        end,
    ?assertEqual({0, #{}}, {mesh_ct:stat(suspicions), mesh_ct:stat(closes)}),
    Killed = mesh_ct:start_peer(),
    Dead = ms_until_closed(Pool, Killed, fun() -> mesh_peer:kill(Killed) end),
    ?assertEqual([refused], lists:sort(maps:keys(mesh_ct:stat(dial_failures)))),
    Still = mesh_ct:start_peer(),
    Paused = ms_until_closed(Pool, Still, fun() -> mesh_peer:pause(Still) end),
    ok = mesh_peer:resume(Still),
    ?assertEqual([refused, timeout], lists:sort(maps:keys(mesh_ct:stat(dial_failures)))),
    ?assertEqual(2, mesh_ct:stat(suspicions)),
    {Vm, Node} = start_node(Config, 0),
    Address = {{127, 0, 0, 1}, mesh_vm:call(Vm, old_node, port, [Node])},
    {ok, Old} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = mesh_vm:kill(Vm),
    {Successor, _} = start_node(Config, element(2, Address)),
    Reset = ms(fun() ->
        ok = macula_quic:send(Old, mesh_peer:frame(1, 8)),
        mesh_wait:eventually({error, reset}, fun() -> macula_quic:send(Old, <<>>) end)
    end),
    ok = peer:stop(Successor),
    mesh_wait:eventually(#{dead => 2, reset => 1}, fun() -> mesh_ct:stat(closes) end),
    #{
        closed_port => Closed,
        rested_connection_checked => Check,
        killed_while_sending => Dead,
        stopped_while_sending => Paused,
        restarted_with_its_key => Reset
    }.

%% Five hundred messages to a peer that takes none, and another peer in its place. The relay keeps
%% from the pool that the port is closed meanwhile: its dial waits for whoever listens there.
replace_a_peer_with_a_hundred_streams(Options) ->
    Pool = mesh_ct:start_pool(Options#{ack_timeout_ms => 1_000, connect_timeout_ms => 60_000}),
    Peer = mesh_ct:start_peer(["--bidi-streams", "100"]),
    {_Relay, Port} = start_relay(mesh_peer:port(Peer)),
    Address = {{127, 0, 0, 1}, Port},
    {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = mesh_peer:pause(Peer),
    [ok = macula_quic:send(Stream, mesh_peer:frame(N, 8)) || N <- lists:seq(0, 499)],
    ok = mesh_peer:kill(Peer),
    Successor = mesh_ct:start_peer(["--port", integer_to_list(mesh_peer:port(Peer))]),
    {Pool, Address, Stream, Successor}.

%% Passes datagrams on between one client and the peer at `PeerPort'; its port can be closed, and
%% opened again.
start_relay(PeerPort) ->
    Self = self(),
    Relay = spawn_link(fun() ->
        {Front, Port} = open_udp(0),
        {Back, _} = open_udp(0),
        Self ! {self(), Port},
        relay(#{front => Front, back => Back, port => Port, peer => PeerPort, client => undefined})
    end),
    receive
        {Relay, Port} -> {Relay, Port}
    end.

tell_relay(Relay, Command) ->
    Relay ! {Command, self()},
    receive
        {Relay, done} -> ok
    end.

relay(#{front := Front, back := Back, port := Port} = State) ->
    receive
        {udp, Front, _Ip, Client, Data} ->
            ok = gen_udp:send(Back, {127, 0, 0, 1}, maps:get(peer, State), Data),
            relay(State#{client := Client});
        {udp, Back, _Ip, _Peer, Data} when Front =/= closed ->
            ok = gen_udp:send(Front, {127, 0, 0, 1}, maps:get(client, State), Data),
            relay(State);
        {udp, _Socket, _Ip, _Port, _Data} ->
            relay(State);
        {close, From} ->
            ok = gen_udp:close(Front),
            From ! {self(), done},
            relay(State#{front := closed});
        {open, From} ->
            {Again, Port} = open_udp(Port),
            From ! {self(), done},
            relay(State#{front := Again})
    end.

open_udp(Port) ->
    {ok, Socket} = gen_udp:open(Port, [binary, {ip, {127, 0, 0, 1}}, {active, true}]),
    {ok, Bound} = inet:port(Socket),
    {Socket, Bound}.

ms(Fun) ->
    {Us, _} = timer:tc(Fun),
    Us / 1_000.

%% From a message that the peer cannot get until its connection is closed.
ms_until_closed(Pool, Peer, End) ->
    Stream = mesh_ct:connect(Pool, Peer),
    ok = End(),
    ms(fun() ->
        ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
        mesh_wait:eventually({error, {dead, ack_timeout}}, fun() ->
            macula_quic:send(Stream, <<>>)
        end)
    end).

%% Suspicions without a recovery.
suspected() ->
    {ok, #{suspicions := Suspicions, recoveries := Recoveries}} = ?POOL:get_stats(?POOL),
    Suspicions - Recoveries.

%% What `Send' returns for a message that has left when its peer, which stands still, is killed.
kill_when_sent(Pool, Peer, Send) ->
    ok = mesh_peer:pause(Peer),
    Before = sent_bytes(Pool, Peer),
    Result = Send(mesh_peer:frame(0, 10_000)),
    %% More than what looks for the path's MTU.
    mesh_wait:eventually(true, fun() -> sent_bytes(Pool, Peer) > Before + 8_000 end),
    ok = mesh_peer:kill(Peer),
    Result.

sent_bytes(Pool, Peer) ->
    {ok, #{sent_bytes := Bytes}} = ?POOL:get_connection_info(Pool, mesh_ct:node_id(Peer)),
    Bytes.

%% Asks for the connection until it has rested for so long that it was checked.
use_until_probed(Pool, Peer, Stream) ->
    mesh_wait:eventually(true, fun() ->
        ?assertEqual(Stream, mesh_ct:connect(Pool, Peer)),
        mesh_ct:stat(probes) > 0
    end).

start_pool_that_backs_off(Ms) -> start_pool_that_backs_off(Ms, #{}).

start_pool_that_backs_off(Ms, Options) ->
    mesh_ct:start_pool(Options#{dial_backoff_min_ms => Ms, dial_backoff_max_ms => Ms}).

%% A VM, and a node in it that listens at this port with the suite's certificate.
start_node(Config, Port) -> start_node(Config, Port, []).

start_node(Config, Port, More) ->
    {CertFile, KeyFile} = proplists:get_value(certificate, Config),
    Vm = mesh_vm:start(),
    Options = [{certfile, CertFile}, {keyfile, KeyFile} | More],
    {ok, Node} = mesh_vm:call(Vm, old_node, start, [1_000, Port, Options]),
    {Vm, Node}.

notified(Vm, Node) ->
    maps:get(notifications, mesh_vm:call(Vm, old_node, counts, [Node]), 0).
