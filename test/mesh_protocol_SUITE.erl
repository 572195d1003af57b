%%% `macula-mesh/1' from end to end: our pool sends, our listener receives, over real sockets.
-module(mesh_protocol_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([
    two_of_ours_agree_on_the_joined_protocol/1,
    a_node_of_the_field_is_spoken_to_as_ever/1,
    messages_of_one_sender_arrive_in_order_and_whole/1,
    messages_of_sixteen_senders_arrive_once_each/1,
    payloads_of_every_size_arrive_as_they_were/1,
    large_messages_arrive_among_small_ones/1,
    a_message_beyond_the_receivers_limit_closes_the_connection/1,
    a_passive_receiver_reads_one_message_at_a_time/1,
    an_unread_stream_holds_the_sender/1,
    a_small_window_holds_nothing_up/1,
    every_message_is_accounted_for/1,
    what_had_arrived_when_the_connection_closed_is_delivered/1
]).

-define(MESSAGES, 20_000).
-define(WAIT_MS, 20_000).
-define(LIMIT, 2_000_000).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        two_of_ours_agree_on_the_joined_protocol,
        a_node_of_the_field_is_spoken_to_as_ever,
        messages_of_one_sender_arrive_in_order_and_whole,
        messages_of_sixteen_senders_arrive_once_each,
        payloads_of_every_size_arrive_as_they_were,
        large_messages_arrive_among_small_ones,
        a_message_beyond_the_receivers_limit_closes_the_connection,
        a_passive_receiver_reads_one_message_at_a_time,
        an_unread_stream_holds_the_sender,
        a_small_window_holds_nothing_up,
        every_message_is_accounted_for,
        what_had_arrived_when_the_connection_closed_is_delivered
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Case, Config) ->
    mesh_ct:forget_configuration(),
    Options = quic_ct:server_options([{alpn, ["macula"]}, {max_frame_bytes, ?LIMIT}]),
    {ok, Listener} = macula_quic:listen([{{127, 0, 0, 1}, 0}], Options),
    {ok, Address} = macula_quic:sockname(Listener),
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    [{listener, Listener}, {address, Address}, {pool, Pool} | Config].

end_per_testcase(_Case, Config) ->
    ok = macula_gateway_mesh:stop(proplists:get_value(pool, Config)),
    ok = macula_quic:close(proplists:get_value(listener, Config)).

two_of_ours_agree_on_the_joined_protocol(Config) ->
    %% Otherwise every message would cost a stream between our own nodes too.
    {ok, _} = macula_quic:async_accept(proplists:get_value(listener, Config), []),
    {ok, _} = connect(Config),
    receive
        {quic, new_conn, _, #{alpn := Alpn}} -> ?assertEqual(<<"macula-mesh/1">>, Alpn)
    after ?WAIT_MS -> ct:fail(no_connection)
    end.

a_node_of_the_field_is_spoken_to_as_ever(_Config) ->
    %% It knows one protocol, and one message on each stream.
    Peer = mesh_peer:start(),
    Address = mesh_peer:address(Peer),
    Pool = macula_gateway_mesh,
    [
        ok = macula_gateway_mesh:send_async(Pool, <<"old">>, Address, mesh_peer:frame(I, 64))
     || I <- lists:seq(0, 99)
    ],
    Stats = mesh_peer:wait(Peer, "messages", 100),
    ?assertMatch(#{distinct := 100, corrupt := 0, streams := 100, uni_streams := 0}, Stats),
    ok = mesh_peer:stop(Peer).

messages_of_one_sender_arrive_in_order_and_whole(Config) ->
    %% What one process sends on one stream must not be reordered.
    {Sender, Receiver} = pair(Config),
    Sending = sending(Sender, [message(I) || I <- lists:seq(1, ?MESSAGES)]),
    ok = macula_quic:setopt(Receiver, active, true),
    [?assertEqual(message(I), next(Receiver)) || I <- lists:seq(1, ?MESSAGES)],
    done(Sending).

messages_of_sixteen_senders_arrive_once_each(Config) ->
    %% Callers share a queue; none of them may lose or repeat what another sends.
    {Sender, Receiver} = pair(Config),
    Share = ?MESSAGES div 16,
    Sending = [
        sending(Sender, [message(N * Share + I) || I <- lists:seq(1, Share)])
     || N <- lists:seq(0, 15)
    ],
    ok = macula_quic:setopt(Receiver, active, true),
    Received = [next(Receiver) || _ <- lists:seq(1, 16 * Share)],
    ?assertEqual(lists:sort([message(I) || I <- lists:seq(1, 16 * Share)]), lists:sort(Received)),
    lists:foreach(fun done/1, Sending).

payloads_of_every_size_arrive_as_they_were(Config) ->
    %% Lengths of 1, 2 and 4 bytes, copied and uncopied messages, and nothing at all.
    {Sender, Receiver} = pair(Config),
    ok = macula_quic:setopt(Receiver, active, true),
    Sizes = [0, 1, 63, 64, 65, 2047, 2048, 16_383, 16_384, 65_535, 65_536, 65_537, ?LIMIT],
    [
        begin
            Payload = crypto:strong_rand_bytes(Size),
            ok = macula_quic:send(Sender, Payload),
            ?assertEqual(Payload, next(Receiver))
        end
     || Size <- Sizes
    ].

large_messages_arrive_among_small_ones(Config) ->
    %% A large message has a stream of its own and holds up no other; all arrive.
    {Sender, Receiver} = pair(Config),
    ok = macula_quic:setopt(Receiver, active, true),
    Large = crypto:strong_rand_bytes(1_000_000),
    Small = [message(I) || I <- lists:seq(1, 2_000)],
    Messages = [M || {I, S} <- lists:enumerate(Small), M <- [Large || I rem 100 =:= 1] ++ [S]],
    Sending = sending(Sender, Messages),
    Received = [next(Receiver) || _ <- Messages],
    ?assertEqual(lists:sort(Messages), lists:sort(Received)),
    ?assertEqual(Small, [M || M <- Received, M =/= Large]),
    done(Sending).

a_message_beyond_the_receivers_limit_closes_the_connection(Config) ->
    %% A length alone must not make a node set memory aside.
    {Sender, Receiver} = pair(Config),
    ok = macula_quic:setopt(Receiver, active, true),
    ok = macula_quic:send(Sender, binary:copy(<<0>>, ?LIMIT + 1)),
    receive
        {quic, frame_too_large, Receiver, Bytes} -> ?assertEqual(?LIMIT + 1, Bytes)
    after ?WAIT_MS -> ct:fail(not_told)
    end,
    Pool = proplists:get_value(pool, Config),
    mesh_wait:eventually({ok, []}, fun() -> macula_gateway_mesh:list_connections(Pool) end),
    {ok, #{closes := Closes, messages_unconfirmed := 1}} = macula_gateway_mesh:get_stats(Pool),
    ?assertEqual(#{closed_by_peer => 1}, Closes).

a_passive_receiver_reads_one_message_at_a_time(Config) ->
    %% recv/2 must cut as exactly as messages do.
    {Sender, Receiver} = pair(Config),
    [ok = macula_quic:send(Sender, message(I)) || I <- lists:seq(1, 100)],
    Read = fun() -> macula_quic:recv(Receiver, ?WAIT_MS) end,
    [?assertEqual({ok, message(I)}, Read()) || I <- lists:seq(1, 100)],
    ?assertEqual({error, timeout}, macula_quic:recv(Receiver, 0)).

an_unread_stream_holds_the_sender(Config) ->
    %% What nobody reads must wait at the sender, not fill the receiver's memory.
    {Sender, Receiver} = pair(Config),
    Chunk = binary:copy(<<1>>, 32_768),
    Accepted = fill(Sender, Chunk, 0),
    ?assert(Accepted * byte_size(Chunk) < 64 * 1024 * 1024),
    ok = macula_quic:setopt(Receiver, active, true),
    [?assertEqual(Chunk, next(Receiver)) || _ <- lists:seq(1, Accepted)].

a_small_window_holds_nothing_up(Config) ->
    %% The least that a listener may grant. Messages are read in their order, so no part of it may
    %% go to those that are not read yet: it would never open again.
    Options = quic_ct:server_options([{receive_window_bytes, 65_536}]),
    {ok, Small} = macula_quic:listen({{127, 0, 0, 1}, 0}, Options),
    {ok, Address} = macula_quic:sockname(Small),
    {Sender, Receiver} = pair([{listener, Small}, {address, Address} | Config]),
    Brief = fun(I) -> <<I:32, 0:(8 * 1_000)>> end,
    Large = fun(I) -> <<I:32, 0:(8 * 150_000)>> end,
    %% A large one, and another behind a small one, so that both are under way when many small ones
    %% come.
    Messages = lists:append([
        [Large(2 * I), Brief(1_000 * I), Large(2 * I + 1)] ++
            [Brief(N) || N <- lists:seq(1_000 * I + 1, 1_000 * I + 100)]
     || I <- lists:seq(1, 10)
    ]),
    Ordered = [M || M <- Messages, byte_size(M) < 2_000],
    %% All of them are queued before any is read.
    [ok = macula_quic:async_send(Sender, Message) || Message <- Messages],
    ok = macula_quic:setopt(Receiver, active, true),
    Received = [next(Receiver) || _ <- Messages],
    ?assertEqual(Ordered, [M || M <- Received, byte_size(M) < 2_000]),
    ?assertEqual(lists:sort(Messages), lists:sort(Received)),
    ok = macula_quic:close(Small).

every_message_is_accounted_for(Config) ->
    %% An operator must be able to trust that nothing vanished.
    {_Sender, Receiver} = pair(Config),
    ok = macula_quic:setopt(Receiver, active, true),
    Pool = proplists:get_value(pool, Config),
    Address = proplists:get_value(address, Config),
    [
        ok = macula_gateway_mesh:send_async(Pool, <<"node">>, Address, message(I))
     || I <- lists:seq(1, 1000)
    ],
    [next(Receiver) || _ <- lists:seq(1, 1000)],
    mesh_wait:eventually(true, fun() ->
        {ok, Stats} = macula_gateway_mesh:get_stats(Pool),
        #{messages_accepted := A, messages_delivered := D, outstanding_messages := O} = Stats,
        A =:= D andalso O =:= 0
    end).

what_had_arrived_when_the_connection_closed_is_delivered(Config) ->
    %% It is acknowledged, so its senders take it for read; on a busy machine that comes later.
    {ok, _} = connect(Config),
    {ok, Connection} = macula_quic:accept(proplists:get_value(listener, Config), ?WAIT_MS),
    #{pool := Pool, address := Address} = maps:from_list(Config),
    %% No more than may come before anything is read.
    Messages = [message(I) || I <- lists:seq(1, 3)] ++ [binary:copy(<<0>>, 200_000)],
    [ok = macula_gateway_mesh:send(Pool, <<"node">>, Address, M, ?WAIT_MS) || M <- Messages],
    ok = macula_gateway_mesh:remove_connection(Pool, <<"node">>),
    receive
        {quic, closed, Connection, _} -> ok
    after ?WAIT_MS -> ct:fail(not_closed)
    end,
    {ok, Receiver} = macula_quic:accept_stream(Connection, ?WAIT_MS),
    ok = macula_quic:setopt(Receiver, active, true),
    %% A large one travels by itself.
    ?assertEqual(lists:sort(Messages), lists:sort([next(Receiver) || _ <- Messages])),
    ?assertEqual({error, closed}, macula_quic:accept_stream(Connection, ?WAIT_MS)).

%%% Helpers

connect(Config) ->
    Pool = proplists:get_value(pool, Config),
    Address = proplists:get_value(address, Config),
    macula_gateway_mesh:get_or_create_connection(Pool, <<"node">>, Address).

%% The pooled stream, and the receiver's, which the first message has opened.
pair(Config) ->
    {ok, Sender} = connect(Config),
    {ok, Connection} = macula_quic:accept(proplists:get_value(listener, Config), ?WAIT_MS),
    ok = macula_quic:send(Sender, <<"first">>),
    {ok, Receiver} = macula_quic:accept_stream(Connection, ?WAIT_MS),
    {ok, <<"first">>} = macula_quic:recv(Receiver, ?WAIT_MS),
    _ = put(connection, Connection),
    {Sender, Receiver}.

message(I) -> <<I:64, 0:(8 * (I rem 300))>>.

next(Stream) ->
    receive
        {quic, Data, Stream, _} when is_binary(Data) -> Data
    after ?WAIT_MS -> ct:fail({nothing_more, process_info(self(), messages)})
    end.

%% Sends until the watermark holds for a while.
fill(Stream, Chunk, Accepted) ->
    case macula_quic:async_send(Stream, Chunk) of
        ok -> fill(Stream, Chunk, Accepted + 1);
        {error, send_queue_full} -> settle(Stream, Chunk, Accepted)
    end.

settle(Stream, Chunk, Accepted) ->
    %% Whether room comes back is the question; a second without any says that none will.
    receive
    after 1_000 -> ok
    end,
    case macula_quic:async_send(Stream, Chunk) of
        ok -> fill(Stream, Chunk, Accepted + 1);
        {error, send_queue_full} -> Accepted
    end.

sending(Stream, Messages) ->
    spawn_monitor(fun() -> [ok = macula_quic:send(Stream, Message) || Message <- Messages] end).

done({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
    after ?WAIT_MS -> ct:fail(still_sending)
    end.
