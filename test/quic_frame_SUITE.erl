%%% Protocol frames on the streams of `macula_quic', however they were cut or joined. Both ends are
%%% ours, on loopback.
-module(quic_frame_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(WAIT_MS, 10_000).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        frames_cut_anywhere_arrive_whole,
        joined_frames_arrive_apart,
        what_is_no_frame_passes_as_it_comes,
        half_a_frame_at_the_end_is_delivered_as_it_is,
        a_change_of_packet_counts_from_the_next_byte,
        a_frame_beyond_the_limit_ends_the_stream,
        long_frames_of_a_connection_share_its_room
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%% QUIC cuts where it likes; a receiver that takes a chunk for a message loses the rest.
frames_cut_anywhere_arrive_whole(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:setopt(Far, active, true),
    Frame = quic_ct:frame(<<"twelve bytes">>),
    Whole = <<Frame/binary, (quic_ct:frame(<<>>))/binary>>,
    [
        begin
            <<Head:Cut/binary, Tail/binary>> = Whole,
            ok = macula_quic:send(Near, Head),
            ok = sent_alone(Near),
            ok = macula_quic:send(Near, Tail),
            ?assertMatch({Frame, _}, quic_ct:next(Far)),
            ?assertMatch({<<1, 1, 0, 0, 0:32>>, _}, quic_ct:next(Far))
        end
     || Cut <- lists:seq(1, byte_size(Whole) - 1)
    ],
    [ok = macula_quic:send(Near, <<Byte>>) || <<Byte>> <= Whole],
    ?assertMatch({Frame, _}, quic_ct:next(Far)).

%% What was sent has left in packets of its own.
sent_alone(Stream) ->
    {error, timeout} = macula_quic:recv(Stream, 2),
    ok.

%% Old senders join; an unmodified v0.20.5 receiver drops all but the first.
joined_frames_arrive_apart(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:setopt(Far, active, true),
    Frames = [quic_ct:frame(binary:copy(<<N>>, N)) || N <- lists:seq(0, 255)],
    ok = macula_quic:send(Near, Frames),
    [?assertMatch({Frame, _}, quic_ct:next(Far)) || Frame <- Frames],
    quic_ct:none(Far).

%% Other protocols share the listener; their bytes must not wait for a frame that never ends.
what_is_no_frame_passes_as_it_comes(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server, macula),
            Frames = [quic_ct:frame(<<N>>) || N <- lists:seq(1, Before)],
            ok = macula_quic:send(Near, [Frames, <<"GET /", 1, 2, 3>>]),
            [?assertEqual({ok, Frame}, macula_quic:recv(Far, ?WAIT_MS)) || Frame <- Frames],
            ?assertEqual({ok, <<"GET /", 1, 2, 3>>}, macula_quic:recv(Far, ?WAIT_MS)),
            ok = macula_quic:send(Near, <<1, 2>>),
            ?assertEqual({ok, <<1, 2>>}, macula_quic:recv(Far, ?WAIT_MS))
        end
     || Before <- [0, 1, 3]
    ].

%% The peer died in mid-sentence: the handler sees what there is, and that it is the end.
half_a_frame_at_the_end_is_delivered_as_it_is(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    <<Half:12/binary, _/binary>> = quic_ct:frame(<<"payload">>),
    ok = macula_quic:send(Near, Half),
    ok = macula_quic:close(Near),
    ?assertEqual({ok, Half}, macula_quic:recv(Far, ?WAIT_MS)),
    ?assertEqual({error, closed}, macula_quic:recv(Far, ?WAIT_MS)).

%% A handler sets options after it has made the stream active, or after a recv that timed out.
a_change_of_packet_counts_from_the_next_byte(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, Far} = quic_ct:streams(Client, Server, macula),
    ok = macula_quic:setopt(Far, active, true),
    quic_ct:none(Far),
    ok = macula_quic:setopt(Far, packet, raw),
    ok = macula_quic:send(Near, <<1, 2>>),
    ?assertMatch({<<1, 2>>, _}, quic_ct:next(Far)),
    {Near2, Far2} = quic_ct:streams(Client, Server, macula),
    ?assertEqual({error, timeout}, macula_quic:recv(Far2, 20)),
    ok = macula_quic:setopt(Far2, packet, raw),
    ok = macula_quic:send(Near2, <<1, 2>>),
    ?assertEqual({ok, <<1, 2>>}, macula_quic:recv(Far2, ?WAIT_MS)).

%% A length of 4 GB in a header must not become memory here.
a_frame_beyond_the_limit_ends_the_stream(_Config) ->
    {Client, Server} = quic_ct:pair([{max_frame_bytes, 100}], []),
    Fits = quic_ct:frame(binary:copy(<<7>>, 92)),
    {Near, Far} = quic_ct:streams(Client, Server, macula),
    ok = macula_quic:setopt(Near, active, true),
    ok = macula_quic:send(Near, [Fits, <<1, 1, 0, 0, 93:32>>]),
    ?assertEqual({ok, Fits}, macula_quic:recv(Far, ?WAIT_MS)),
    ?assertEqual({error, {frame_too_large, 101}}, macula_quic:recv(Far, ?WAIT_MS)),
    ?assertEqual({error, {frame_too_large, 101}}, macula_quic:recv(Far, ?WAIT_MS)),
    ?assertMatch({peer_receive_aborted, _}, quic_ct:next(Near)),
    {Near2, Far2} = quic_ct:streams(Client, Server, macula),
    ok = macula_quic:setopt(Far2, active, true),
    ok = macula_quic:send(Near2, [Fits, <<1, 1, 0, 0, 16#ffffffff:32>>]),
    ?assertMatch({Fits, _}, quic_ct:next(Far2)),
    ?assertEqual({frame_too_large, 16#ffffffff + 8}, quic_ct:next(Far2)),
    %% While the stream is active, recv tells it too.
    {Near3, Far3} = quic_ct:streams(Client, Server, macula),
    ok = macula_quic:setopt(Far3, active, true),
    ok = macula_quic:send(Near3, <<1, 1, 0, 0, 93:32>>),
    ?assertEqual({error, {frame_too_large, 101}}, macula_quic:recv(Far3, ?WAIT_MS)).

%% A long frame on each of a hundred streams must not become a hundred long frames here.
long_frames_of_a_connection_share_its_room(_Config) ->
    Options = [{max_unfinished_bytes, 250_000}, {receive_window_bytes, 65_536}],
    {Client, Server} = quic_ct:pair(Options, []),
    [First, Second, Third] = [quic_ct:streams(Client, Server, macula) || _ <- [1, 2, 3]],
    Long = quic_ct:frame(binary:copy(<<7>>, 150_000)),
    Half = binary:part(Long, 0, 75_000),
    Begin = fun({Near, Far}, Data) ->
        ok = macula_quic:setopt(Far, active, true),
        ok = macula_quic:send(Near, Data)
    end,
    Begin(First, Half),
    %% It is being put together: it is longer than the window, so some of it has been read.
    mesh_wait:eventually({ok, [{send_pend, 0}]}, fun() ->
        macula_quic:getstat(Client, [send_pend])
    end),
    Begin(Second, Half),
    {_, SecondFar} = Second,
    ?assertEqual({frame_too_large, byte_size(Long)}, quic_ct:next(SecondFar)),
    %% Short ones pass, and the first one comes to its end and makes room.
    Short = quic_ct:frame(binary:copy(<<7>>, 60_000)),
    Begin(Third, Short),
    {ThirdNear, ThirdFar} = Third,
    ?assertMatch({Short, _}, quic_ct:next(ThirdFar)),
    {FirstNear, FirstFar} = First,
    ok = macula_quic:send(FirstNear, binary:part(Long, 75_000, byte_size(Long) - 75_000)),
    ?assertMatch({Long, _}, quic_ct:next(FirstFar)),
    ok = macula_quic:send(ThirdNear, Long),
    ?assertMatch({Long, _}, quic_ct:next(ThirdFar)).
