%%% Floods from a client that means harm (test/mesh_attacker.erl), at a node in a VM of its own: its
%%% memory stays within what docs/operations.md says, and another client is served all the while.
-module(flood_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(WAIT_MS, 10_000).
-define(LOOPBACK, {127, 0, 0, 1}).
-define(ELSEWHERE, {127, 0, 0, 2}).
-define(FROM_ELSEWHERE, ["--from", "127.0.0.2"]).
-define(MIB, 1_048_576).
%% What the allocators and the other client may take on top.
-define(SLACK, 48 * ?MIB).
%% docs/operations.md, "What a peer may pin": what it says of one connection, in bytes.
-define(WINDOW, 8 * ?MIB).
-define(STREAMS, 103).
-define(PER_STREAM, 350 * 1_024).
-define(PER_CONNECTION, 128 * 1_024).

suite() -> [{timetrap, {seconds, 150}}].

all() ->
    [
        handshakes_that_never_finish,
        first_datagrams_that_end_what_they_begin,
        streams_opened_and_reset,
        stop_sending_on_every_stream,
        stop_sending_again_and_again,
        bytes_with_holes_between_them,
        bytes_among_packets_that_are_empty,
        more_holes_than_loss_can_make_end_the_connection,
        frames_that_come_byte_by_byte,
        frames_whose_end_never_comes,
        data_that_nobody_reads,
        a_smaller_window_pins_less,
        answers_that_nobody_reads,
        connection_ids_retired_without_end_end_the_connection
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%% The cheapest attack there is. One address can hold so many places, and the others are for others.
handshakes_that_never_finish(_Config) ->
    Node = #{options => [{handshake_idle_timeout_ms, 3_000}]},
    Args = ["--connections", "600", "--count", "4"],
    Stats = flood(hellos, Args, Node, 256 * ?PER_CONNECTION),
    #{outcome := #{done := 2_400}, node := #{handshakes := Handshakes, refused := Refused}} = Stats,
    %% And that of the other client, if it is under way.
    ?assert(Handshakes =< 257),
    ?assertMatch(#{max_handshakes_per_address := _, handshake_timeout := _}, Refused),
    %% Nobody else was turned away.
    Causes = [max_handshakes_per_address, handshake_timeout, handshake_failed],
    ?assertEqual(#{}, maps:without(Causes, Refused)).

%% Nobody has to receive at his address for it, and quinn keeps each for three seconds.
first_datagrams_that_end_what_they_begin(_Config) ->
    Args = ["--connections", "4", "--count", "10000"],
    Stats = flood(farewells, Args, #{slack => 16 * ?MIB}, 128 * ?PER_CONNECTION),
    #{outcome := #{done := 40_000}, node := Node} = Stats,
    #{handshakes := Handshakes, refused := Refused} = Node,
    %% `retry_above_handshakes', and the other client, who has shown where he is.
    ?assert(Handshakes =< 129),
    ?assertMatch(#{handshake_failed := Failed} when Failed >= 128, Refused).

%% The other end's stream credit is the bound, and it comes back with each stream given up.
streams_opened_and_reset(_Config) ->
    Args = ["--connections", "4", "--count", "12500"],
    Stats = flood(resets, Args, #{}, 4 * ?PER_CONNECTION),
    ?assertMatch(#{outcome := #{done := 50_000, closed := 0}}, Stats).

%% Whoever answers must not keep the answers that nobody wants.
stop_sending_on_every_stream(_Config) ->
    Args = ["--connections", "4", "--count", "12500"],
    Stats = flood(stops, Args, #{}, 4 * ?PER_CONNECTION),
    ?assertMatch(#{outcome := #{done := 50_000, closed := 0}}, Stats).

%% 150 frames in each packet, of which the first says everything.
stop_sending_again_and_again(_Config) ->
    Args = ["--connections", "4", "--count", "500000"],
    Stats = flood(repeats, Args, #{}, 4 * ?PER_CONNECTION),
    #{outcome := #{done := Packets}} = Stats,
    ?assert(Packets > 4_000).

%% What lies behind a hole waits here, in pieces that cost more than they hold.
bytes_with_holes_between_them(_Config) ->
    Pinned = 4 * (5 * ?WINDOW div 2 + ?STREAMS * ?PER_STREAM),
    Stats = flood(gaps, ["--connections", "4", "--count", "1000"], #{}, Pinned),
    ?assertMatch(#{outcome := #{closed := 0}, node := #{connections := N}} when N >= 4, Stats).

%% What the kernel hands over at once must not be kept for the one byte in it.
bytes_among_packets_that_are_empty(_Config) ->
    Bytes = 20 * ?STREAMS * 5,
    Args = ["--connections", "20", "--count", "5"],
    Pinned = Bytes * 2_048 + 20 * ?PER_CONNECTION,
    Stats = flood(sparse, Args, #{slack => 16 * ?MIB}, Pinned),
    #{outcome := #{closed := 0, done := Packets}, peak := Peak} = Stats,
    ?assertEqual(10 * Bytes, Packets),
    ?assert(Peak < Packets * 1_200 div 2).

%% More pieces than any loss explains end the connection.
more_holes_than_loss_can_make_end_the_connection(_Config) ->
    Pinned = 4 * (5 * ?WINDOW div 2 + ?STREAMS * ?PER_STREAM),
    Stats = flood(gaps, ["--connections", "4", "--count", "5000"], #{}, Pinned),
    %% INTERNAL_ERROR (RFC 9000, section 20.1), as quinn has it.
    ?assertMatch(#{outcome := #{ended := {transport, 1}, closed := 4}}, Stats).

%% Each byte comes in a packet of 1,200 bytes, which must not be kept for it.
frames_that_come_byte_by_byte(_Config) ->
    Args = ["--connections", "20", "--count", "3000"],
    Packets = 20 * 3_000 * 1_200,
    Stats = flood(crumbs, Args, #{slack => 20 * ?MIB}, 20 * ?PER_CONNECTION),
    #{outcome := #{done := 120_000, closed := 0}, peak := Peak} = Stats,
    ?assert(Peak < Packets div 3).

%% A frame is put together here, beyond what flow control lets through.
frames_whose_end_never_comes(_Config) ->
    Node = #{options => [{max_unfinished_bytes, 16 * ?MIB}]},
    Args = ["--connections", "4", "--size", "1000000"],
    Pinned = 4 * (16 * ?MIB + ?WINDOW + ?PER_CONNECTION),
    %% They wanted 400 MB.
    Stats = flood(frames, Args, Node, Pinned),
    ?assertMatch(#{outcome := #{closed := 0, connected := 4}}, Stats).

%% A handler that is busy elsewhere: flow control holds who sends.
data_that_nobody_reads(_Config) ->
    Pinned = 10 * (5 * ?WINDOW div 4 + ?PER_CONNECTION),
    Args = ["--connections", "10"],
    Stats = flood(unread, Args, #{neglected => ?ELSEWHERE}, Pinned),
    %% It was full: 64 KiB were sent so often.
    #{outcome := #{done := Writes, closed := 0}} = Stats,
    ?assert(Writes >= 10 * ?WINDOW div 65_536 - 10).

%% The option is the bound, and not what happens to be enough.
a_smaller_window_pins_less(_Config) ->
    Node = #{neglected => ?ELSEWHERE, options => [{receive_window_bytes, ?MIB}]},
    Stats = flood(unread, ["--connections", "10"], Node#{slack => 16 * ?MIB}, 10 * 2 * ?MIB),
    #{outcome := #{done := Writes, closed := 0}} = Stats,
    ?assert(Writes =< 10 * 17).

%% Somebody who asks and asks and takes no answer.
answers_that_nobody_reads(_Config) ->
    Args = ["--connections", "10", "--count", "10000", "--size", "10000"],
    %% What waits for one stream, a watermark of 4 MiB, and one connection's window of it under way.
    Stats = flood(deaf, Args, #{}, 10 * (5 * ?MIB + ?WINDOW)),
    ?assertMatch(#{outcome := #{done := 100_000}}, Stats).

%% For each that a peer retires it is given another, kept here until it has acknowledged that.
connection_ids_retired_without_end_end_the_connection(_Config) ->
    Args = ["--connections", "4", "--count", "2000"],
    Stats = flood(retirements, Args, #{}, 4 * ?PER_CONNECTION),
    %% docs/protocol.md, "Close codes".
    ?assertMatch(#{outcome := #{ended := {application, 16#4d04}, closed := 4}}, Stats).

%%% Internal

%% Floods a fresh node, while another client asks it things, and checks what it takes.
flood(Attack, Args, Given, Pinned) ->
    Node = maps:merge(#{options => []}, Given),
    flood_node:with(Node, fun(Vm, Port) ->
        ok = served(Port),
        Before = flood_node:memory(Vm),
        ok = flood_node:forget_peak(Vm),
        Client = start_client(Port),
        Attacker = mesh_attacker:start_at(Port, Attack, ?FROM_ELSEWHERE ++ Args),
        Outcome = mesh_attacker:outcome(Attacker),
        Peak = flood_node:peak(Vm) - Before,
        Stats = flood_node:stats(Vm),
        {Served, WorstMs} = stop_client(Client),
        ok = mesh_attacker:call_off(Attacker),
        ct:pal("~p: at most ~.1f MiB more, of ~.1f; ~b others served, in at most ~b ms~n~p~n~p", [
            Attack, Peak / ?MIB, Pinned / ?MIB, Served, WorstMs, Outcome, Stats
        ]),
        ?assert(Served > 0),
        ?assert(Peak < Pinned + maps:get(slack, Node, ?SLACK)),
        #{outcome => Outcome, node => Stats, peak => Peak}
    end).

%% A client that makes a connection and gets an answer, again and again, all the while.
start_client(Port) ->
    Client = quic_ct:agent(),
    {Client, quic_ct:tell(Client, fun() -> serve_on(Port, 0, 0) end)}.

stop_client({Client, Ref}) ->
    Client ! stop,
    receive
        {Ref, Result} -> Result
    after 2 * ?WAIT_MS -> error(client_is_stuck)
    end.

serve_on(Port, Served, Worst) ->
    receive
        stop -> {Served, Worst}
    after 10 ->
        {Us, ok} = timer:tc(fun() -> served(Port) end),
        serve_on(Port, Served + 1, max(Worst, Us div 1_000))
    end.

served(Port) ->
    {ok, Connection} = macula_quic:connect(?LOOPBACK, Port, [], ?WAIT_MS),
    {ok, Stream} = macula_quic:open_stream(Connection),
    Frame = quic_ct:frame(<<"question">>),
    ok = macula_quic:send(Stream, Frame),
    {ok, Frame} = macula_quic:recv(Stream, ?WAIT_MS),
    macula_quic:close(Connection).
