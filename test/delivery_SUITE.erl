%%% Confirmed sending, and sending again what a lost connection had not confirmed: what `send/5'
%%% says of a message is so at the peer.
-module(delivery_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([
    a_confirmed_message_is_at_the_peer/1,
    a_message_that_waits_too_long_for_a_dial_is_withdrawn/1,
    a_message_that_waits_too_long_behind_others_is_withdrawn/1,
    a_message_that_waits_for_room_when_the_connection_ends_is_told_and_counted/1,
    a_message_under_way_may_have_arrived_when_the_time_is_over/1,
    a_failed_dial_is_told_as_that/1,
    a_connection_lost_after_sending_leaves_the_message_unconfirmed/1,
    senders_wait_for_room_and_are_all_served/1,
    a_message_beyond_the_limit_is_refused_and_counted/1,
    the_message_of_a_sender_that_dies_before_it_leaves_is_withdrawn/1,
    withdrawn_messages_give_their_room_back/1,
    a_stopped_pool_tells_everyone_who_waits/1,
    what_there_was_no_time_for_was_not_sent/1,
    a_bad_timeout_or_message_is_a_bad_call/1,
    the_server_takes_messages_for_callers_on_other_nodes/1,
    a_stale_pid_leads_to_the_registered_server/1,
    every_confirmed_message_arrives_once_among_others/1,
    by_default_nothing_is_sent_twice/1,
    what_was_under_way_is_sent_again_if_that_is_asked_for/1,
    between_two_of_ours_it_is_sent_again_too/1,
    what_was_sent_and_cannot_be_sent_again_may_have_arrived/1,
    a_message_that_its_peer_refuses_is_not_sent_for_ever/1
]).

-define(POOL, macula_gateway_mesh).
-define(LONG, 30_000).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [
        a_confirmed_message_is_at_the_peer,
        a_message_that_waits_too_long_for_a_dial_is_withdrawn,
        a_message_that_waits_too_long_behind_others_is_withdrawn,
        a_message_that_waits_for_room_when_the_connection_ends_is_told_and_counted,
        a_message_under_way_may_have_arrived_when_the_time_is_over,
        a_failed_dial_is_told_as_that,
        a_connection_lost_after_sending_leaves_the_message_unconfirmed,
        senders_wait_for_room_and_are_all_served,
        a_message_beyond_the_limit_is_refused_and_counted,
        the_message_of_a_sender_that_dies_before_it_leaves_is_withdrawn,
        withdrawn_messages_give_their_room_back,
        a_stopped_pool_tells_everyone_who_waits,
        what_there_was_no_time_for_was_not_sent,
        a_bad_timeout_or_message_is_a_bad_call,
        the_server_takes_messages_for_callers_on_other_nodes,
        a_stale_pid_leads_to_the_registered_server,
        every_confirmed_message_arrives_once_among_others,
        by_default_nothing_is_sent_twice,
        what_was_under_way_is_sent_again_if_that_is_asked_for,
        between_two_of_ours_it_is_sent_again_too,
        what_was_sent_and_cannot_be_sent_again_may_have_arrived,
        a_message_that_its_peer_refuses_is_not_sent_for_ever
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Case, Config) ->
    mesh_ct:begin_test(),
    Config.

end_per_testcase(_Case, _Config) -> mesh_ct:end_test().

a_confirmed_message_is_at_the_peer(_Config) ->
    %% `ok' is the only word that a sender may build on.
    Pool = mesh_ct:start_pool(),
    Peer = mesh_ct:start_peer(),
    Frames = [mesh_peer:frame(Index, 8 + Index * 100) || Index <- lists:seq(0, 99)],
    [?assertEqual(ok, deliver(Pool, Peer, Frame)) || Frame <- Frames],
    ?assertMatch(#{distinct := 100, corrupt := 0}, mesh_peer:wait(Peer, messages, 100)),
    Stats = mesh_load:assert_accounted(Pool, 100),
    ?assertMatch(#{messages_delivered := 100, messages_unconfirmed := 0}, Stats).

a_message_that_waits_too_long_for_a_dial_is_withdrawn(_Config) ->
    %% Told that nothing was sent, a sender tries another way: the first must not come after all.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG}),
    Peer = mesh_ct:start_peer(),
    mesh_peer:pause(Peer),
    ?assertEqual({error, timeout}, deliver(Pool, Peer, mesh_peer:frame(0, 100), 50)),
    mesh_peer:resume(Peer),
    ?assertEqual(ok, deliver(Pool, Peer, mesh_peer:frame(1, 100))),
    ?assertMatch(#{messages := 1, distinct := 1}, mesh_peer:wait(Peer, messages, 1)),
    ?assertEqual(#{send_timeout => 1}, mesh_ct:stat(messages_dropped)).

a_message_that_waits_too_long_behind_others_is_withdrawn(_Config) ->
    %% The same, where the connection is there and the peer grants no more streams.
    Pool = mesh_ct:start_pool(),
    Peer = mesh_ct:start_peer(["--bidi-streams", "1"]),
    ok = deliver(Pool, Peer, mesh_peer:frame(0, 100)),
    mesh_peer:pause(Peer),
    %% The streams in between are enough for what the peer has granted anew.
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(Index, 100)) || Index <- lists:seq(1, 5)],
    ?assertEqual({error, timeout}, deliver(Pool, Peer, mesh_peer:frame(6, 100), 50)),
    mesh_peer:resume(Peer),
    ok = deliver(Pool, Peer, mesh_peer:frame(7, 100)),
    ?assertMatch(#{distinct := 7, messages := 7}, mesh_peer:wait(Peer, messages, 7)),
    mesh_load:assert_accounted(Pool, 8).

a_message_that_waits_for_room_when_the_connection_ends_is_told_and_counted(_Config) ->
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => 1, linger_ms => 0}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    mesh_peer:pause(Peer),
    mesh_ct:send(Pool, Peer, mesh_peer:frame(0, 100)),
    Waiting = mesh_ct:start_task(fun() -> deliver(Pool, Peer, mesh_peer:frame(1, 100)) end),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Waiting) end),
    ok = ?POOL:remove_connection(Pool, mesh_ct:node_id(Peer)),
    ?assertEqual({error, removed}, mesh_ct:await(Waiting)),
    ?assertMatch(
        #{messages_unconfirmed := 1, messages_dropped := #{removed := 1}},
        mesh_load:assert_accounted(Pool, 2)
    ).

a_message_under_way_may_have_arrived_when_the_time_is_over(_Config) ->
    %% What has been sent cannot be taken back, and saying that it was not would have it sent twice.
    %% The time is enough for a busy machine to send it.
    Pool = mesh_ct:start_pool(#{ack_timeout_ms => 0}),
    Peer = mesh_ct:start_peer(),
    _ = mesh_ct:connect(Pool, Peer),
    mesh_peer:pause(Peer),
    Outcome = deliver(Pool, Peer, mesh_peer:frame(0, 100), 3_000),
    mesh_peer:resume(Peer),
    ?assertEqual({error, {unconfirmed, timeout}}, Outcome),
    ?assertMatch(#{messages := 1}, mesh_peer:wait(Peer, messages, 1)).

a_failed_dial_is_told_as_that(_Config) ->
    %% In the words of get_or_create_connection/3, which a caller knows.
    Send = fun(Address) -> ?POOL:send(?POOL, <<"node">>, Address, <<"message">>, ?LONG) end,
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG}),
    ?assertEqual({error, {connect_failed, {bad_address, {1, 2}}}}, Send({1, 2})),
    ?assertEqual({error, {connect_failed, nxdomain}}, Send("no-such-host.invalid")),
    ?assertEqual(#{bad_address => 1, nxdomain => 1}, mesh_ct:stat(messages_dropped)),
    ok = ?POOL:stop(Pool),
    _ = mesh_ct:start_pool(#{connect_timeout_ms => 100}),
    ?assertEqual({error, {connect_failed, timeout}}, Send(mesh_peer:silent())),
    ?assertEqual(#{timeout => 1}, mesh_ct:stat(messages_dropped)).

a_connection_lost_after_sending_leaves_the_message_unconfirmed(_Config) ->
    %% The peer may have got it before it died.
    Pool = mesh_ct:start_pool(),
    %% It takes more than a day for the message.
    Peer = mesh_ct:start_peer(["--mode", "slow:10"]),
    Sending = mesh_ct:start_task(fun() -> deliver(Pool, Peer, mesh_peer:frame(0, 4_000_000)) end),
    mesh_peer:wait(Peer, streams, 1),
    ?assertEqual({closed, 1}, mesh_peer:command(Peer, "close 3")),
    ?assertEqual({error, {unconfirmed, {closed_by_peer, 3}}}, mesh_ct:await(Sending)),
    ?assertMatch(#{messages_unconfirmed := 1}, mesh_load:assert_accounted(Pool, 1)).

senders_wait_for_room_and_are_all_served(_Config) ->
    %% Back-pressure for who wants it: nobody is refused, and the queue stays short.
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => 1_000}),
    Peer = mesh_ct:start_peer(),
    Send = fun(Sender) ->
        Indices = lists:seq(Sender * 100, Sender * 100 + 99),
        [deliver(Pool, Peer, mesh_peer:frame(Index, 500)) || Index <- Indices]
    end,
    Work = fun() ->
        mesh_load:concurrently([fun() -> Send(Sender) end || Sender <- lists:seq(0, 15)])
    end,
    Look = fun() -> mesh_ct:stat(outstanding_bytes) end,
    {Largest, Results} = mesh_load:largest_during(Look, Work),
    ?assertEqual([ok], lists:usort(lists:append(Results))),
    ?assert(Largest =< 1_000),
    ?assertMatch(#{distinct := 1_600}, mesh_peer:wait(Peer, messages, 1_600)).

a_message_beyond_the_limit_is_refused_and_counted(_Config) ->
    Pool = mesh_ct:start_pool(#{queue_max_bytes => 1_024}),
    Peer = mesh_ct:start_peer(),
    ?assertEqual({error, message_too_large}, deliver(Pool, Peer, <<0:(1_025 * 8)>>)),
    ?assertEqual(#{message_too_large => 1}, mesh_ct:stat(messages_dropped)).

the_message_of_a_sender_that_dies_before_it_leaves_is_withdrawn(_Config) ->
    %% Its queue would hold it until the time that the sender had given it is over.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG}),
    {_, _} = Nobody = mesh_peer:silent(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        ?POOL:send(Pool, <<"node">>, Nobody, <<"from the dead">>, ?LONG)
    end),
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(outstanding_messages) end),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, Pid, killed} -> ok
    end,
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(outstanding_messages) end),
    ?assertEqual(#{cancelled => 1}, mesh_ct:stat(messages_dropped)).

withdrawn_messages_give_their_room_back(_Config) ->
    %% Or a peer that is being dialled could be kept from having any message at all.
    Pool = mesh_ct:start_pool(#{queue_max_messages => 4, connect_timeout_ms => ?LONG}),
    {_, _} = Nobody = mesh_peer:silent(),
    Send = fun() -> ?POOL:send(Pool, <<"node">>, Nobody, <<"message">>, 10) end,
    [?assertEqual({error, timeout}, Send()) || _ <- lists:seq(1, 20)],
    ?assertEqual(#{send_timeout => 20}, mesh_ct:stat(messages_dropped)),
    ?assert(mesh_ct:stat(outstanding_messages) =< 2).

a_stopped_pool_tells_everyone_who_waits(_Config) ->
    %% A caller must not wait for an answer that nobody is left to give.
    Pool = mesh_ct:start_pool(#{linger_ms => 100, connect_timeout_ms => ?LONG}),
    Nobody = mesh_peer:silent(),
    Call = fun() -> ?POOL:send(Pool, <<"node">>, Nobody, <<"message">>, ?LONG) end,
    Sending = [mesh_ct:start_task(Call) || _ <- lists:seq(1, 10)],
    mesh_wait:eventually(10, fun() -> mesh_ct:stat(outstanding_messages) end),
    ok = ?POOL:stop(Pool),
    [?assertEqual({error, {connect_failed, pool_closed}}, mesh_ct:await(Task)) || Task <- Sending],
    ?assertExit({noproc, _}, Call()).

what_there_was_no_time_for_was_not_sent(_Config) ->
    %% A peer that reads nothing. When the time to linger is over, the first message has used up
    %% what it takes unread, and may have arrived. The second may be given to another pool.
    Window = 65_536,
    Listener = quic_ct:listen([{receive_window_bytes, Window}]),
    {ok, Address} = macula_quic:sockname(Listener),
    lists:foreach(
        fun({End, Reason}) ->
            Pool = mesh_ct:start_pool(#{linger_ms => 100}),
            Send = fun() ->
                ?POOL:send(Pool, <<"node">>, Address, <<0:(8 * 400_000)>>, ?LONG)
            end,
            First = mesh_ct:start_task(Send),
            mesh_wait:eventually(true, fun() ->
                case ?POOL:get_connection_info(Pool, <<"node">>) of
                    {ok, #{sent_bytes := Sent}} -> Sent > Window;
                    not_found -> false
                end
            end),
            Second = mesh_ct:start_task(Send),
            mesh_wait:eventually(2, fun() -> mesh_ct:stat(outstanding_messages) end),
            ok = End(Pool),
            ?assertEqual({error, {unconfirmed, Reason}}, mesh_ct:await(First)),
            ?assertEqual({error, Reason}, mesh_ct:await(Second)),
            is_process_alive(Pool) andalso ?POOL:stop(Pool)
        end,
        [
            {fun(Pool) -> ?POOL:remove_connection(Pool, <<"node">>) end, removed},
            {fun ?POOL:stop/1, pool_closed}
        ]
    ).

a_bad_timeout_or_message_is_a_bad_call(_Config) ->
    Pool = mesh_ct:start_pool(),
    Nobody = mesh_peer:silent(),
    Send = fun(Message, Timeout) -> ?POOL:send(Pool, <<"n">>, Nobody, Message, Timeout) end,
    [
        ?assertError(function_clause, Send(<<"message">>, Bad))
     || Bad <- [-1, infinity, 1.0, 1 bsl 32]
    ],
    [?assertError(function_clause, Send(Bad, 10)) || Bad <- [message, <<1:1>>, #{}]],
    ?assertError(badarg, Send([message], 10)),
    ?assertEqual({error, timeout}, Send([<<"io">>, "data"], 10)).

the_server_takes_messages_for_callers_on_other_nodes(_Config) ->
    %% Who is not on this node has no other way; the server itself waits for nothing.
    Pool = mesh_ct:start_pool(),
    Peer = mesh_ct:start_peer(),
    {NodeId, Address} = {mesh_ct:node_id(Peer), mesh_peer:address(Peer)},
    Request = fun(To, Ms) -> {send, NodeId, To, mesh_peer:frame(0, 100), Ms} end,
    ?assertEqual(ok, gen_server:call(Pool, Request(Address, ?LONG))),
    ?assertEqual(ok, gen_server:call({?POOL, node()}, Request(Address, ?LONG))),
    ?assertEqual({error, unknown_request}, gen_server:call(Pool, Request(Address, -1))),
    Silent = {send, <<"other">>, mesh_peer:silent(), <<"message">>, 50},
    ?assertEqual({error, timeout}, gen_server:call(Pool, Silent)),
    ?assertEqual(ok, ?POOL:send({?POOL, node()}, NodeId, Address, mesh_peer:frame(1, 100), ?LONG)),
    ?assertEqual(ok, ?POOL:send(?POOL, NodeId, Address, mesh_peer:frame(2, 100), ?LONG)).

a_stale_pid_leads_to_the_registered_server(_Config) ->
    %% The platform keeps the pid that it saw at boot.
    _ = mesh_ct:start_supervised(#{}),
    Former = whereis(?POOL),
    Peer = mesh_ct:start_peer(),
    exit(Former, kill),
    mesh_wait:eventually(true, fun() -> not lists:member(whereis(?POOL), [undefined, Former]) end),
    ?assertEqual(ok, deliver(Former, Peer, mesh_peer:frame(0, 100))).

every_confirmed_message_arrives_once_among_others(_Config) ->
    %% Both ways of sending share a queue, and their accounts must agree with the peer's.
    Pool = mesh_ct:start_pool(),
    Peer = mesh_ct:start_peer(),
    Send = fun(Sender) ->
        [one(Pool, Peer, Sender * 1_000 + Index) || Index <- lists:seq(0, 999)]
    end,
    Results = mesh_load:concurrently([fun() -> Send(Sender) end || Sender <- lists:seq(0, 7)]),
    ?assertEqual([ok], lists:usort(lists:append(Results))),
    ?assertMatch(#{distinct := 8_000, messages := 8_000}, mesh_peer:wait(Peer, messages, 8_000)),
    mesh_load:assert_accounted(Pool, 8_000).

by_default_nothing_is_sent_twice(_Config) ->
    %% A message that is not repeatable must not be repeated behind its sender's back.
    {Pool, Send, Successor, Confirmed} = replace_a_peer_that_holds_messages(at_most_once),
    ?assertMatch({error, {unconfirmed, _}}, mesh_ct:await(Confirmed)),
    ok = Send(mesh_peer:frame(100, 100)),
    ?assertMatch(#{messages := 1}, mesh_peer:wait(Successor, messages, 1)),
    ?assertMatch(
        #{messages_unconfirmed := 11, messages_redelivered := 0},
        mesh_load:assert_accounted(Pool, 12)
    ).

what_was_under_way_is_sent_again_if_that_is_asked_for(_Config) ->
    %% For messages that may come twice and must come.
    {Pool, _Send, Successor, Confirmed} = replace_a_peer_that_holds_messages(at_least_once),
    ?assertMatch(#{distinct := 11}, mesh_peer:wait(Successor, distinct, 11)),
    ?assertEqual(ok, mesh_ct:await(Confirmed)),
    ?assertMatch(
        #{messages_unconfirmed := 0, messages_redelivered := 11, messages_delivered := 11},
        mesh_load:assert_accounted(Pool, 11)
    ).

what_was_sent_and_cannot_be_sent_again_may_have_arrived(_Config) ->
    Peer = mesh_ct:start_peer(),
    {Pool, Send, Confirmed} =
        kill_a_peer_that_holds_messages(at_least_once, Peer, mesh_peer:address(Peer)),
    ?assertEqual({error, {unconfirmed, refused}}, mesh_ct:await(Confirmed)),
    ?assertMatch(
        #{messages_unconfirmed := 11, messages_dropped := Dropped} when Dropped =:= #{},
        mesh_load:assert_accounted(Pool, 11)
    ),
    ?assertEqual({error, {connect_failed, refused}}, Send(<<"never sent">>)).

a_message_that_its_peer_refuses_is_not_sent_for_ever(_Config) ->
    Pool = mesh_ct:start_pool(#{redelivery => at_least_once}),
    Listener = quic_ct:listen([{max_frame_bytes, 100_000}]),
    {ok, Address} = macula_quic:sockname(Listener),
    Send = fun(Message) -> ?POOL:send(Pool, <<"node">>, Address, Message, ?LONG) end,
    Taker = spawn_link(fun() -> take_in(Listener) end),
    %% Each connection carries something before it is closed for the long one.
    Sender = spawn_link(fun() -> again(fun() -> Send(<<"short">>) end) end),
    %% Larger than what is acknowledged unread.
    TooLong = <<0:(8 * 4_000_000)>>,
    ?assertEqual({error, {unconfirmed, {closed_by_peer, 16#4d02}}}, Send(TooLong)),
    [
        begin
            unlink(Pid),
            exit(Pid, kill)
        end
     || Pid <- [Taker, Sender]
    ].

between_two_of_ours_it_is_sent_again_too(_Config) ->
    %% There a message has no stream of its own, unless it is large.
    Pool = mesh_ct:start_pool(#{redelivery => at_least_once}),
    Listener = quic_ct:listen([]),
    {ok, Address} = macula_quic:sockname(Listener),
    Accept = fun() ->
        {ok, Connection} = macula_quic:accept(Listener, ?LONG),
        {ok, Stream} = macula_quic:accept_stream(Connection, ?LONG),
        {Connection, Stream}
    end,
    %% Larger than what the receiver takes unread: it stays under way.
    Message = <<0:(8 * 4_000_000)>>,
    Sending = mesh_ct:start_task(fun() ->
        ?POOL:send(Pool, <<"node">>, Address, Message, ?LONG)
    end),
    {First, _Unread} = Accept(),
    ok = macula_quic:close(First),
    {_Second, Stream} = Accept(),
    ?assertEqual({ok, Message}, macula_quic:recv(Stream, ?LONG)),
    ?assertEqual(ok, mesh_ct:await(Sending)),
    ?assertEqual(1, mesh_ct:stat(messages_redelivered)),
    mesh_load:assert_accounted(Pool, 1).

%%% Internal

deliver(Pool, Peer, Message) -> deliver(Pool, Peer, Message, ?LONG).

deliver(Pool, Peer, Message, TimeoutMs) ->
    ?POOL:send(Pool, mesh_ct:node_id(Peer), mesh_peer:address(Peer), Message, TimeoutMs).

one(Pool, Peer, Index) when Index rem 2 =:= 0 ->
    mesh_ct:send(Pool, Peer, mesh_peer:frame(Index, 50));
one(Pool, Peer, Index) ->
    deliver(Pool, Peer, mesh_peer:frame(Index, 50)).

take_in(Listener) ->
    {ok, Connection} = macula_quic:accept(Listener, ?LONG),
    {ok, Stream} = macula_quic:accept_stream(Connection, ?LONG),
    ok = macula_quic:setopt(Stream, active, true),
    take_in(Listener).

again(Do) ->
    _ = Do(),
    again(Do).

%% As below; another takes its place. The relay keeps from the pool that the port is closed
%% meanwhile: what it sends again waits for whoever listens there.
replace_a_peer_that_holds_messages(Redelivery) ->
    Peer = mesh_ct:start_peer(),
    Relay = mesh_ct:start_relay(Peer),
    {Pool, Send, Confirmed} =
        kill_a_peer_that_holds_messages(Redelivery, Peer, mesh_relay:address(Relay)),
    Port = integer_to_list(mesh_peer:port(Peer)),
    {Pool, Send, mesh_ct:start_peer(["--port", Port]), Confirmed}.

%% Ten messages and a confirmed one are under way, by this address, to a peer that dies.
kill_a_peer_that_holds_messages(Redelivery, Peer, Address) ->
    Pool = mesh_ct:start_pool(#{
        redelivery => Redelivery,
        idle_timeout_ms => 4_000,
        ack_timeout_ms => 0,
        connect_timeout_ms => ?LONG
    }),
    {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    mesh_peer:pause(Peer),
    Frames = [mesh_peer:frame(Index, 100) || Index <- lists:seq(0, 9)],
    [ok = ?POOL:send_async(Pool, <<"node">>, Address, Frame) || Frame <- Frames],
    Send = fun(Message) -> ?POOL:send(Pool, <<"node">>, Address, Message, ?LONG) end,
    Confirmed = mesh_ct:start_task(fun() -> Send(mesh_peer:frame(10, 100)) end),
    mesh_wait:eventually(11, fun() -> mesh_ct:stat(outstanding_messages) end),
    mesh_peer:kill(Peer),
    {Pool, Send, Confirmed}.
